"""Who gets which address.

The internet is 192.0.0.128/25: reserved by IANA and never routed, yet not on go-libp2p's list of private addresses. It does
AutoNAT, circuit relays and hole punching only between addresses that it takes for public; with 10/8 or 198.18/15 nothing
happens (measured). Homes have 192.168.K.0/24, a provider that translates has 100.64.K.0/24 inside. IPv6: one /64 for the
internet and the hosts behind a single router, which filters and translates nothing, as is usual; behind two routers there is
IPv4 only. 3fff::/20 is reserved for documentation, and public to go-libp2p.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from experiments.lab.topology import INTERNET, Host, Nat, Router, Topology

_INTERNET = IPv4Address("192.0.0.128")
_INTERNET_BITS = 25
_HOME = IPv4Address("192.168.0.0")
_PROVIDER = IPv4Address("100.64.0.0")
_IPV6 = IPv6Address("3fff::")
_FIRST_HOST, _LAST_HOST = 2, 69
_FIRST_ROUTER, _LAST_ROUTER = 70, 126
_GATEWAY = 1


@dataclass(frozen=True, slots=True)
class Address:
    """Of one network interface. Gateways are None on the internet, where everybody is a neighbour.

    `routed`: the address belongs to the internet, but its host stands behind a firewall that answers for it.
    """

    ip: IPv4Address
    prefix_bits: int
    gateway: IPv4Address | None = None
    routed: bool = False
    ip6: IPv6Address | None = None
    gateway6: IPv6Address | None = None


class AddressBook:
    """Hands out addresses, each one once."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._used: defaultdict[tuple[str, bool], int] = defaultdict(int)
        self._numbers = {router.name: k for k, router in enumerate(topology.routers, start=1)}
        self._providers = {router.behind for router in topology.routers if router.behind}

    def gateway(self, router: Router) -> Address:
        """The router's own address inside."""
        ip6 = _ip6(_GATEWAY, self._numbers[router.name])
        if router.nat is Nat.FIREWALL:
            return Address(_INTERNET + _GATEWAY, 32, ip6=ip6)
        return Address(self._inside(router) + _GATEWAY, 24, ip6=ip6)

    def give(self, part: Host | Router, behind: str) -> Address:
        """A fresh address for it on the internet (`behind` empty) or inside a router. Raises ValueError when none is left."""
        is_router = isinstance(part, Router)
        router = self._topology.router(behind) if behind else None
        inside = router is not None and router.nat is not Nat.FIREWALL
        net = (behind if inside else INTERNET, is_router)
        number = (_FIRST_ROUTER if is_router else _FIRST_HOST) + self._used[net]
        self._used[net] += 1
        if number > (_LAST_ROUTER if is_router else _LAST_HOST):
            raise ValueError(f"no address is left {f'behind {behind}' if inside else 'on the internet'}")
        if router is None:
            return Address(_INTERNET + number, _INTERNET_BITS, ip6=_ip6(number))
        gateway = self.gateway(router)
        ip6 = _ip6(number, self._numbers[behind]) if not (router.behind or is_router) else None
        if not inside:
            return Address(_INTERNET + number, 32, gateway.ip, True, ip6, gateway.ip6)
        return Address(self._inside(router) + number, 24, gateway.ip, False, ip6, gateway.ip6)

    def _inside(self, router: Router) -> IPv4Address:
        base = _PROVIDER if router.name in self._providers else _HOME
        return base + 256 * self._numbers[router.name]


def _ip6(number: int, router: int = 0) -> IPv6Address:
    return _IPV6 + (router << 16) + number
