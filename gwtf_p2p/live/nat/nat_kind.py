"""Which kind of NAT this machine is behind, concluded from what public peers see and from who can dial it. Pure: no I/O.

Kinds are told by mapping and filtering (RFC 4787), of TCP, on the port that this peer listens on. Three dials tell them apart,
each of which a stock libp2p peer does when asked by AutoNAT. They must be made in this order, since a packet sent opens a door:

- the cold dial, before the port has sent anything: gets in only where there is no filter, or a forwarded port;
- the stranger's dial, from an address that the port has never sent to, at the public address that somebody else saw: gets in
  through a full cone;
- the dial from another port of an address that the port has sent to: gets in through an address-restricted cone as well.

Whether the public port is the same for two observers on distinct addresses tells a cone from a symmetric NAT. With one observer
none of this is certain, and is not claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, ip_address

from gwtf_p2p.live.nat.reachability_rules import host_of, is_public_maddr

_CARRIERS = IPv4Network("100.64.0.0/10")
"""For providers that translate (RFC 6598)."""

_PROVIDERS_OWN = IPv4Network("10.0.0.0/8")
"""Some providers number their routers so, without translating."""


class NatKind(Enum):
    """What stands between this machine and the internet."""

    NONE = "none"
    LOCAL = "local"
    """The peers that were asked are on the same private network: nothing stands between."""
    FIREWALL = "firewall"
    """No translation; nobody gets in uncalled."""
    FORWARDED = "forwarded"
    """A NAT of whatever kind, which hands this port to this machine."""
    FULL_CONE = "full_cone"
    ADDRESS_RESTRICTED = "address_restricted"
    PORT_RESTRICTED = "port_restricted"
    SYMMETRIC = "symmetric"
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        return _WORDS[self]

    @property
    def strangers_get_in(self) -> bool:
        """For good, not only for as long as a mapping happens to live."""
        return self in (NatKind.NONE, NatKind.LOCAL, NatKind.FORWARDED)


_WORDS = {
    NatKind.NONE: "no NAT: anybody can dial this machine",
    NatKind.LOCAL: "the initial peers are on this machine's own network; nothing is known about the internet",
    NatKind.FIREWALL: "no NAT, but a firewall drops what comes in uncalled",
    NatKind.FORWARDED: "behind a NAT that forwards this port",
    NatKind.FULL_CONE: "full-cone NAT: anybody can dial this machine while its mapping lives",
    NatKind.ADDRESS_RESTRICTED: "address-restricted NAT: only addresses that were called get in",
    NatKind.PORT_RESTRICTED: "port-restricted NAT: only an address and port that was called gets in",
    NatKind.SYMMETRIC: "symmetric NAT: another public port for each destination",
    NatKind.UNKNOWN: "cannot tell the kind of NAT",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out. A dial that was not tried, or not answered by a yes or a no, is None.

    `own_ip`: of this machine's interface on the way out. `observed`: the listening port's public address (multiaddr) as each
    observer sees it, observers on distinct addresses only. `hops`: addresses of the first routers on the way to a public peer,
    nearest first, empty for the silent ones. `outside_ip`: the nearest router's own outside address, if it told (UPnP, PCP).
    """

    own_ip: str = ""
    observed: tuple[str, ...] = ()
    cold: bool | None = None
    stranger: bool | None = None
    known: bool | None = None
    hops: tuple[str, ...] = ()
    outside_ip: str = ""


def kind_of_nat(evidence: Evidence) -> tuple[NatKind, str]:
    """The kind, and what it was concluded from, or what is missing to tell it."""
    if not evidence.observed:
        return NatKind.UNKNOWN, "no public peer has seen this machine's address: give --initial_peers"
    first = evidence.observed[0]
    if not is_public_maddr(first):
        return NatKind.LOCAL, f"seen at {first}"
    if evidence.cold is None:
        return NatKind.UNKNOWN, "no initial peer dials back (AutoNAT), or asked too often: give another one, or wait a minute"
    if host_of(first) == evidence.own_ip:
        if evidence.cold:
            return NatKind.NONE, f"dialled at {first}"
        return NatKind.FIREWALL, f"seen at this machine's own address {evidence.own_ip}, but not dialled there"
    if evidence.cold:
        return NatKind.FORWARDED, f"dialled at {host_of(first)} before anything was sent from the port"
    if len(evidence.observed) < 2:
        return NatKind.UNKNOWN, _with_one_observer(evidence)
    if len(set(evidence.observed)) > 1:
        return NatKind.SYMMETRIC, f"seen at {' and '.join(evidence.observed)}"
    if evidence.stranger is None or evidence.known is None:
        return NatKind.UNKNOWN, "a cone NAT; to tell which, two initial peers that dial back (AutoNAT) are missing, or a minute"
    if evidence.stranger:
        return NatKind.FULL_CONE, f"a peer that was never called has dialled {first}"
    if evidence.known:
        return NatKind.ADDRESS_RESTRICTED, f"dialled at {first} by a peer that was called, by no other"
    return NatKind.PORT_RESTRICTED, f"seen at {first} by all, dialled there by nobody"


def _with_one_observer(evidence: Evidence) -> str:
    cone = "a full cone or address-restricted" if evidence.known else "port-restricted or symmetric"
    return f"{cone}; a second public peer on another address is missing to tell which: give its --initial_peers too"


def second_nat(evidence: Evidence) -> tuple[bool | None, str]:
    """Whether another NAT (a provider's, or one more router of one's own) stands behind the first; None when nothing tells.

    Sure is the router's own outside address when it is not the one that others see; else the addresses of the first routers on
    the way are judged.
    """
    seen = host_of(evidence.observed[0]) if evidence.observed else ""
    if seen and (seen == evidence.own_ip or not is_public_maddr(evidence.observed[0])):
        return False, ""
    if evidence.outside_ip and not is_public_maddr(f"/ip4/{evidence.outside_ip}"):
        return True, f"the router's own outside address is {evidence.outside_ip}"
    if _in(evidence.own_ip, _CARRIERS):
        return True, f"this machine's own address {evidence.own_ip} is of a provider's NAT"
    behind = [hop for hop in evidence.hops[1:] if hop and not is_public_maddr(f"/ip4/{hop}")]
    sure = [hop for hop in behind if not _in(hop, _PROVIDERS_OWN)]
    if sure:
        return True, f"behind the first router comes {sure[0]}, a private address too"
    if behind:
        return None, f"behind the first router comes {behind[0]}: a second NAT, or a provider that numbers its routers so"
    return (False, "") if evidence.hops and all(evidence.hops[1:]) else (None, "")


def _in(ip: str, network: IPv4Network) -> bool:
    try:
        return ip_address(ip) in network
    except ValueError:
        return False
