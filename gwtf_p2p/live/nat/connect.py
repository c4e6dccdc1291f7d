"""Connections to other peers: the direct addresses first, then the circuits; and what each path turns out to be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from gwtf_p2p.live.libp2p.dialling import connect, connections, disconnect, is_circuit
from gwtf_p2p.live.nat import hole_punch as punch
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.nat.reachability_rules import kind_of
from gwtf_p2p.live.rpc.api import FailureKind, RpcFailed
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PathType, StageRecord

logger = logging.getLogger(__name__)

DIRECT_S = 4.0
CIRCUIT_S = 6.0
FIRST_RETRY_S = 30.0
"""Until the next try for a better path, after the first one."""


@dataclass(slots=True)
class Way:
    """What is known of the path to one peer. `sent_bytes`, since `opened_s`, counts against the circuit's budget."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    kind: PathType | None = None
    told: PathType | None = None
    sent_bytes: int = 0
    opened_s: float = 0.0
    changing_until_s: float = 0.0
    next_try_s: float = 0.0
    retry_s: float = FIRST_RETRY_S
    is_fragile: bool = False
    is_trying: bool = False
    is_wanted: bool = False
    doors: list[punch.Splice] = field(default_factory=list)


class Connector:
    """Dials and looks. `on_change` hears of every new kind of path, `on_better` of a path that is no circuit any more."""

    def __init__(self, control: str, reachability: Reachability, clock: Callable[[], float]) -> None:
        self.control, self._reachability, self._clock = control, reachability, clock
        self.ways: dict[PeerId, Way] = {}
        self.records: dict[PeerId, StageRecord] = {}
        self.on_change: Callable[[PeerId, PathType], None] = lambda peer, kind: None
        self.on_better: Callable[[PeerId], None] = lambda peer: None

    def way(self, peer: PeerId) -> Way:
        """The path to a peer; a new one is not connected."""
        return self.ways.setdefault(peer, Way())

    def learn(self, view: NetworkView) -> None:
        """Addresses from the newest records. Those of a peer that has lost its record are kept: it may come back."""
        for peer, record in view.records.items():
            if record.maddrs:
                self.records[peer] = record

    async def connect(self, peer: PeerId, way: Way) -> None:
        """Raises RpcFailed (UNREACHABLE) with the reason of each address group."""
        maddrs = self.records[peer].maddrs if peer in self.records else ()
        direct = [maddr for maddr in maddrs if not is_circuit(maddr)]
        circuits = [maddr for maddr in maddrs if is_circuit(maddr)]
        reasons = []
        for group, limit_s in ((direct, DIRECT_S), (circuits, CIRCUIT_S)):
            if group:
                reason = await connect(self.control, peer, group, limit_s)
                if not reason:
                    break
                reasons.append(reason)
        else:
            if maddrs:
                raise RpcFailed(peer, FailureKind.UNREACHABLE, "; ".join(reasons))
        await self.look_at(peer, way)

    async def look_at(self, peer: PeerId, way: Way) -> None:
        """See what the path is now."""
        self.note(peer, way, (await connections(self.control)).get(peer, []))

    def note(self, peer: PeerId, way: Way, remote: list[str]) -> None:
        """`remote`: the addresses to which p2pd has connections of this peer."""
        kind = kind_of(remote, {door.local_port for door in way.doors}, self._is_behind_nat(peer))
        before, way.kind = way.kind, kind
        if kind is PathType.RELAYED and before is not PathType.RELAYED:
            way.sent_bytes, way.opened_s = 0, self._clock()
        if kind is way.told or kind is None:
            return
        before, way.told = way.told, kind
        way.is_fragile = kind is not PathType.PUBLIC  # and stays so when it ends: the end of a circuit is no news of the peer
        logger.debug("path to %s: %s%s", peer[-6:], kind.value, f", was {before.value}" if before else "")
        if kind is not PathType.RELAYED:
            way.retry_s = FIRST_RETRY_S
            self.on_better(peer)
        self.on_change(peer, kind)

    def _is_behind_nat(self, peer: PeerId) -> bool:
        record = self.records.get(peer)
        theirs = record is not None and record.path is not PathType.PUBLIC
        return theirs and self._reachability.path is not PathType.PUBLIC

    async def hang_up(self, peer: PeerId, way: Way) -> None:
        """End the connection, because p2pd dials nobody to whom it has one; that says nothing of the peer."""
        way.changing_until_s = self._clock() + DIRECT_S + CIRCUIT_S
        way.kind = None
        await disconnect(self.control, peer)
