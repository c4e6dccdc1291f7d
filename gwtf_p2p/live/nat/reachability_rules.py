"""What a peer concludes from what others see of it. Pure: no I/O, no clock.

The safe assumption comes first: a peer counts as not reachable until somebody has dialled it back, because the yes takes one
round trip and the no 15 s. Even then it keeps its reservations at relays: a NAT that admits every port of known addresses earns
a yes from them though strangers cannot come in. Callers try the direct address first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from gwtf_p2p.protocol.wire.records import PathType

RENEW_FRACTION = 0.5
"""A reservation is renewed after this part of its life, so that one failed attempt does not end it."""

EARLY_RENEW_S = 20.0
"""The first renewal: a circuit relay whose AutoNAT verdict turns public after we came forgets its reservations (measured)."""

SPARE_FRACTION = 0.1
"""A circuit is replaced while this part of its budget is left."""

OVERHEAD_BYTES = 16 << 10
"""Of a circuit's budget go to its handshakes and to small messages."""

NO_END = 1 << 62


class Mapping(Enum):
    """The public port of a peer, as others see it."""

    KEPT = "kept"
    """The same for everybody: others can be told where to dial."""
    VARIES = "varies"
    """Another for each destination."""
    UNKNOWN = "unknown"
    """One observer is too few to tell."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a peer's own reachability.

    `observed`: its address as each public peer sees it. `dialled_back`: where somebody has reached it; empty if nobody has.
    `announced`: what its owner says. `listens`: the addresses of its own interfaces, with the port that it listens on.
    """

    observed: tuple[str, ...] = ()
    dialled_back: str = ""
    announced: tuple[str, ...] = ()
    listens: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        if len(set(self.observed)) > 1:
            return Mapping.VARIES
        if len(self.observed) > 1:
            return Mapping.KEPT
        if not self.observed or not self.listens:
            return Mapping.UNKNOWN
        # One observer tells nothing for sure; but a router that keeps ports mostly keeps their numbers too.
        same = port_of(self.observed[0]) in {port_of(maddr) for maddr in self.listens}
        return Mapping.KEPT if same else Mapping.VARIES

    @property
    def direct(self) -> tuple[str, ...]:
        """Addresses under which others can dial this peer, as far as is known."""
        if self.announced:
            return self.announced
        if self.dialled_back:
            return (self.dialled_back,)
        near = {host_of(maddr) for maddr in self.observed if not is_public_maddr(maddr)}
        return tuple(maddr for maddr in self.listens if host_of(maddr) in near)


class Role(Enum):
    """Of a peer in a punch; see `hole_punch`."""

    DIALS = "dials"
    WAITS = "waits"


def path_of(situation: Situation) -> tuple[PathType, str]:
    """How others will reach this peer, and why."""
    if situation.announced:
        return PathType.PUBLIC, f"announced as {situation.announced[0]}"
    if situation.dialled_back:
        return PathType.PUBLIC, f"dialled back at {situation.dialled_back}"
    if situation.direct:
        return PathType.PUBLIC, f"on one network with its initial peers, at {situation.direct[0]}"
    seen = f"seen by {len(situation.observed)} of its initial peers, port {situation.mapping.value}"
    return PathType.RELAYED, f"nobody has dialled it back ({seen})"


def punch_role(me: Situation, other: Situation, mine_is_smaller: bool) -> tuple[Role | None, str]:
    """This peer's part in a punch with the other, or None where a punch is needless or hopeless; and why.

    Both ends come to matching answers. Whose port varies must dial, since nobody can be told where to dial it; whether the
    other end admits that port is found out by trying. Between equals the smaller peer id dials.
    """
    if other.dialled_back or me.dialled_back:
        return None, "one end can be dialled: no punch is needed"
    if not me.observed or not other.observed:
        return None, "nobody has seen the public address of one end"
    mine, theirs = me.mapping is Mapping.VARIES, other.mapping is Mapping.VARIES
    if mine and theirs:
        return None, "both ports vary with the destination"
    if mine or theirs:
        return Role.DIALS if mine else Role.WAITS, "the end whose port varies must dial"
    return Role.DIALS if mine_is_smaller else Role.WAITS, "both ports are kept: the smaller peer id dials"


def is_likely(me: Situation, other: Situation) -> bool:
    """Whether a punch will probably come off, so that traffic may wait for it. Where the port of one end varies, it comes off
    only with a router at the other end that admits any port, which few do: such a try has to wait for the traffic.
    """
    return Mapping.VARIES not in (me.mapping, other.mapping) or share_a_router(me, other)


def renew_in_s(lasts_s: float, is_first: bool) -> float:
    """Seconds until a reservation that lasts so long is renewed."""
    in_time = max(1.0, lasts_s * RENEW_FRACTION)
    return min(EARLY_RENEW_S, in_time) if is_first else in_time


def circuit_left(budget_bytes: int, budget_s: int, used_bytes: int, age_s: float) -> int:
    """Payload bytes that a circuit should carry yet, after so many and so long; a budget of 0 has no end."""
    if budget_s and age_s > budget_s * (1 - SPARE_FRACTION):
        return 0
    if not budget_bytes:
        return NO_END
    return max(0, int(budget_bytes * (1 - SPARE_FRACTION)) - OVERHEAD_BYTES - used_bytes)


def circuit_maddrs(relays: Sequence[str]) -> tuple[str, ...]:
    """Under which addresses a peer is reached through circuit relays (multiaddrs with peer id); append /p2p/<its id> to
    dial."""
    return tuple(f"{relay}/p2p-circuit" for relay in relays)


def kind_of(connections: Collection[str], doors: Collection[int], both_behind_nat: bool) -> PathType | None:
    """The kind of path to a peer, from the remote addresses of all connections to it; None without any.

    A direct connection beats a relayed one, as p2pd itself prefers it. `doors`: local ports of punched connections that are
    handed on over loopback (see `hole_punch`).
    """
    direct = [maddr for maddr in connections if "/p2p-circuit" not in maddr]
    if not direct:
        return PathType.RELAYED if connections else None
    if any(port_of(maddr) in doors and is_loopback(maddr) for maddr in direct):
        return PathType.PUNCHED
    if both_behind_nat and any(is_public_maddr(maddr) for maddr in direct):
        return PathType.PUNCHED
    return PathType.PUBLIC


def share_a_router(me: Situation, other: Situation) -> bool:
    """Whether both are seen under one public address: then each is dialled at its own interface's address."""
    return bool({host_of(m) for m in me.observed} & {host_of(m) for m in other.observed})


def host_of(maddr: str) -> str:
    parts = maddr.split("/")
    return parts[2] if len(parts) > 2 else ""


def port_of(maddr: str) -> int:
    parts = maddr.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdigit() else 0


def is_loopback(maddr: str) -> bool:
    address = _ip_of(maddr)
    return address is not None and address.is_loopback


def is_public_maddr(maddr: str) -> bool:
    """Whether go-libp2p takes this address for one of the internet. DNS names count as public."""
    address = _ip_of(maddr)
    if address is None:
        return maddr.startswith("/dns")
    if address.version == 4 and address in _RESERVED_YET_PUBLIC:
        return True
    return address.is_global


def _ip_of(maddr: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host_of(maddr))
    except ValueError:
        return None


_RESERVED_YET_PUBLIC = ipaddress.ip_network("192.0.0.0/24")
"""Not on go-libp2p's list of private networks; the lab's internet."""
