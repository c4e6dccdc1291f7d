"""Have the home router forward this peer's port (UPnP, PCP or NAT-PMP, whichever answers), keep it so, take it back at the end.

An hour is asked for; what the router grants instead, a minute or two with some, is what counts. A mapping is renewed at half
of that and at the latest every ten minutes, so that a router that restarted, or whose public address changed, is not without
it for long; `close` removes it. Where none was to be had, it is tried again as often. A router whose own outside address is
private stands behind another NAT: a mapping there leads nowhere, so it is taken back at once and the reason says so. Whether
the mapped port can really be reached is for somebody else's dial-back to tell.

    mapper = PortMapper(on_change)
    maddr = await mapper.map_port(31330)      # '/ip4/1.2.3.4/tcp/31330', or None and mapper.reason
    ...
    await mapper.close()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from gwtf_p2p.live.nat.nat_pmp import Gateway, Granted, MappingRefused, NoGateway, find_pmp_gateway
from gwtf_p2p.live.nat.upnp import find_upnp_gateway

logger = logging.getLogger(__name__)

LEASE_S = 3600
RENEW_S = 600.0
LEAST_RENEW_S = 5.0
"""Routers are not asked more often; one that grants less than twice of it is said to."""

FIND_S = 4.0
"""How long a router may take to answer a search; UPnP gives it a random wait of up to 3 s."""

_REMOVE_S = 3.0
_PRIVATE = "10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"
_NOT_PUBLIC = tuple(map(IPv4Network, (*_PRIVATE, "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")))


def is_public(ip: str) -> bool:
    """Whether an IPv4 address can be dialled from the internet. Reserved ranges that never occur there count as public, as for
    go-libp2p; Python's own list calls them private."""
    try:
        address = IPv4Address(ip)
    except ValueError:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def renewal_s(granted_s: int, at_most_s: float = RENEW_S) -> float:
    """Seconds after which to renew what was granted for `granted_s`, where 0 is for ever: half of it, as RFC 6886 (section 3.3)
    and RFC 6887 (section 11.2.1) have it."""
    return min(at_most_s, max(granted_s / 2, LEAST_RENEW_S)) if granted_s else at_most_s


@dataclass(frozen=True, slots=True)
class Mapped:
    """A port that a router forwards. `kind`: UPnP, PCP or NAT-PMP; `router`: its inside address."""

    port: int
    kind: str
    router: str
    granted: Granted

    @property
    def maddr(self) -> str:
        return f"/ip4/{self.granted.external_ip}/tcp/{self.granted.external_port}"


class PortMapper:
    """Of one port. `on_change` is called, in the event loop, when a renewal gave another address or none."""

    def __init__(self, on_change: Callable[[], None] = lambda: None, lease_s: int = LEASE_S, renew_s: float = RENEW_S) -> None:
        self._on_change = on_change
        self._lease_s, self._renew_s = lease_s, renew_s
        self._gateway: Gateway | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self.mapped: Mapped | None = None
        self.reason = "not tried"
        """Why there is no mapping."""
        self.outside_ip = ""
        """The router's own outside address, when a router has told it, public or not."""

    async def map_port(self, port: int, limit_s: float = FIND_S) -> str | None:
        """The public multiaddr that leads to this TCP port of this machine from now on; None, with `reason`, without one."""
        assert self._renewing is None, "one mapper maps one port"
        self.mapped = await self._search_and_map(port, limit_s)
        self._renewing = asyncio.get_running_loop().create_task(self._renew(port))
        if self.mapped is None:
            return None
        lease = f"for {self.mapped.granted.lifetime_s} s at a time" if self.mapped.granted.lifetime_s else "for ever"
        logger.info("%s router %s forwards %s, %s", self.mapped.kind, self.mapped.router, self.mapped.maddr, lease)
        return self.mapped.maddr

    def look_again(self) -> None:
        """Map anew now: the machine has another address, perhaps behind another router."""
        self._moved.set()

    async def close(self) -> None:
        """Remove the mapping. May be called twice."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        mapped, self.mapped = self.mapped, None
        if mapped is not None and self._gateway is not None:
            await _take_back(self._gateway, mapped)

    async def _search_and_map(self, port: int, limit_s: float) -> Mapped | None:
        """The first router that answers and grants; what stands against it is in `reason`."""
        reasons: list[str] = []
        searches = [asyncio.ensure_future(find_pmp_gateway(limit_s)), asyncio.ensure_future(find_upnp_gateway(limit_s))]
        try:
            for search in asyncio.as_completed(searches):
                try:
                    self._gateway = await search
                    mapped = await self._map(self._gateway, port)
                except (NoGateway, MappingRefused) as error:
                    reasons.append(str(error))
                else:
                    self.reason = ""
                    return mapped
        finally:
            for search in searches:
                search.cancel()
            await asyncio.gather(*searches, return_exceptions=True)
        self.reason = "; ".join(reasons)
        return None

    async def _map(self, gateway: Gateway, port: int) -> Mapped:
        """Raises NoGateway, MappingRefused."""
        granted = await gateway.map(port, port, self._lease_s)
        self.outside_ip = granted.external_ip
        mapped = Mapped(port, gateway.kind, gateway.address, granted)
        if not is_public(granted.external_ip):
            await _take_back(gateway, mapped)
            where = f"router {gateway.address} is itself behind a NAT, at {granted.external_ip}"
            raise MappingRefused(f"{gateway.kind}: {where}")
        if 0 < granted.lifetime_s < 2 * LEAST_RENEW_S:
            logger.warning(
                "router %s grants %d s only: the port is closed for a part of the time", gateway.address, granted.lifetime_s
            )
        return mapped

    async def _renew(self, port: int) -> None:
        """For ever. A router that answers no more is looked for again, as is one that was not there before."""
        while True:
            wait_s = renewal_s(self.mapped.granted.lifetime_s, self._renew_s) if self.mapped else self._renew_s
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._moved.wait()
            known = self._gateway if self.mapped is not None and not self._moved.is_set() else None
            self._moved.clear()
            mapped = await self._map_again(known, port) or await self._search_and_map(port, FIND_S)
            before, self.mapped = self.mapped, mapped
            if (before and before.maddr) != (mapped and mapped.maddr):
                logger.info("port mapping: %s", mapped.maddr if mapped else self.reason)
                self._on_change()

    async def _map_again(self, gateway: Gateway | None, port: int) -> Mapped | None:
        try:
            return await self._map(gateway, port) if gateway is not None else None
        except (NoGateway, MappingRefused):
            return None


async def _take_back(gateway: Gateway, mapped: Mapped) -> None:
    """Best effort: a mapping that cannot be removed ends with its lease."""
    with suppress(NoGateway, MappingRefused, TimeoutError):
        async with asyncio.timeout(_REMOVE_S):
            await gateway.unmap(mapped.port, mapped.granted.external_port)
