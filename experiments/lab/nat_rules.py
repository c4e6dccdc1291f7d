"""The nftables rules of a router, by its kind.

The kernel's `masquerade` keeps the port where it can, and lets in only the address and port that was sent to: that is the
port-restricted cone; `fully-random` makes it symmetric. For the wider cones the router also notes who sent from which port
(full cone), or from which port to whom (address-restricted), and hands what comes to that port to this host. Two hosts of one
router that use the same port are the limit of this: the note is the last one's.
"""

from __future__ import annotations

from experiments.lab.topology import Nat, Router

OUTER_DEVICE = "wan0"
"""Of a router, towards the internet."""
BRIDGE = "net0"
"""Of a router, inside; and of the internet."""

_PROTOCOLS = ("udp", "tcp")
_NOTE_S = 180
"""How long a note lives that nobody renews; RFC 4787 asks for two minutes at least."""


def nat_rules(router: Router, forwards: list[tuple[int, str]]) -> str:
    """Input for `nft -f -`. `forwards`: ports of the router, and the addresses inside that they lead to."""
    parts = [*_noting(router), _filter([*_notes(router), "ct status dnat accept"], "")]
    if router.nat is not Nat.FIREWALL:
        parts.append(_chain("incoming", "nat hook prerouting priority dstnat", [*_hand_ins(router), *_forwarding(forwards)]))
        kind = "masquerade fully-random" if router.nat is Nat.SYMMETRIC else "masquerade"
        parts.append(_chain("outgoing", "nat hook postrouting priority srcnat", [f'oifname "{OUTER_DEVICE}" {kind}']))
    neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
    return _table("ip", parts) + _table("ip6", [_filter([], neighbours)])


def _noting(router: Router) -> list[str]:
    """The maps of who sent from where."""
    key = {Nat.FULL_CONE: "inet_service", Nat.ADDRESS_RESTRICTED: "ipv4_addr . inet_service"}.get(router.nat)
    if key is None:
        return []
    kind = f"type {key} : ipv4_addr; flags dynamic,timeout; timeout {_NOTE_S}s; size 65535;"
    return [f"map sent_{protocol} {{ {kind} }}" for protocol in _PROTOCOLS]


def _notes(router: Router) -> list[str]:
    """Every packet from inside renews its note."""
    keys = {Nat.FULL_CONE: "{0} sport", Nat.ADDRESS_RESTRICTED: "ip daddr . {0} sport"}
    key = keys.get(router.nat, "")
    going = f'iifname "{BRIDGE}" oifname "{OUTER_DEVICE}"'
    life = f"timeout {_NOTE_S}s : ip saddr"
    return [f"{going} update @sent_{protocol} {{ {key.format(protocol)} {life} }}" for protocol in _PROTOCOLS if key]


def _hand_ins(router: Router) -> list[str]:
    keys = {Nat.FULL_CONE: "{0} dport", Nat.ADDRESS_RESTRICTED: "ip saddr . {0} dport"}
    key = keys.get(router.nat, "")
    coming = f'iifname "{OUTER_DEVICE}"'
    return [
        f"{coming} meta l4proto {protocol} dnat ip to {key.format(protocol)} map @sent_{protocol}"
        for protocol in _PROTOCOLS
        if key
    ]


def _forwarding(forwards: list[tuple[int, str]]) -> list[str]:
    coming = f'iifname "{OUTER_DEVICE}"'
    return [f"{coming} {protocol} dport {port} dnat to {host}" for port, host in forwards for protocol in _PROTOCOLS]


def _filter(notes: list[str], to_router: str) -> str:
    """From outside come answers, what the rules above hand in, and for the router itself `to_router`."""
    answers = "ct state established,related accept"
    passing = [*notes, f'iifname "{BRIDGE}" accept', answers]
    own = [to_router, f'iifname "{OUTER_DEVICE}" {answers}', f'iifname "{OUTER_DEVICE}" drop']
    return "\n".join(
        [
            _chain("passing", "filter hook forward priority filter; policy drop", passing),
            _chain("to_router", "filter hook input priority filter", [rule for rule in own if rule]),
        ]
    )


def _chain(name: str, kind: str, rules: list[str]) -> str:
    return "\n".join([f"chain {name} {{", f"type {kind};", *rules, "}"])


def _table(family: str, parts: list[str]) -> str:
    return "\n".join([f"table {family} lab {{", *parts, "}", ""])
