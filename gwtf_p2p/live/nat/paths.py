"""The best path to each peer: direct if it can be dialled, else punched, else through a circuit relay; and what each path is.

Addresses come from the peers' records. Before a stream is opened, `ready` sees to a connection (`connect`); where only a
circuit is to be had, the two ends try for a better path (`improve`). The connections of p2pd are looked at all the time: a path
that has become better or worse is told to whoever measures links. Circuits end after some bytes or seconds (`budget`):
`allowance` and `renew` replace them before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import connections
from gwtf_p2p.live.nat.budget import LEAST_ALLOWANCE, Budget
from gwtf_p2p.live.nat.connect import Connector, Way
from gwtf_p2p.live.nat.improve import Improver
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.rpc.api import RpcFailed
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PathType

logger = logging.getLogger(__name__)

LOOK_S = 3.0


class Paths:
    """`Ways` of one peer. Use: `attach`, and `stop` at the end."""

    def __init__(self, daemon: Daemon, reachability: Reachability) -> None:
        self._daemon, self._reachability = daemon, reachability
        self._clock = asyncio.get_running_loop().time
        self._connector = Connector(daemon.control_path, reachability, self._clock)
        self._budget = Budget(self._connector.records, reachability, self._clock)
        self._improver: Improver | None = None
        self._rpc: Rpc | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.circuits_renewed = 0

    def attach(self, rpc: Rpc, on_change: Callable[[PeerId, PathType], None]) -> None:
        """`rpc`: the data plane over which peers agree on better paths. `on_change` hears of every new kind of path."""
        self._rpc, self._connector.on_change, self._connector.on_better = rpc, on_change, rpc.path_changed
        self._improver = Improver(self._daemon.peer_id, rpc, self._connector, self._reachability, self._spawn)
        self._spawn(self._keep_looking())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self._connector.ways.values():
            for door in way.doors:
                door.close()

    def learn(self, view: NetworkView) -> None:
        """Addresses from the newest records."""
        self._connector.learn(view)

    def kind(self, peer: PeerId) -> PathType | None:
        """None while there is no connection."""
        return self._connector.way(peer).kind

    def circuit_bytes(self, peer: PeerId) -> int:
        """What a circuit between this peer and that one carries each way; 0 is no limit."""
        return self._budget.circuit_bytes(peer)

    # ---- as `rpc/outgoing.Ways`

    async def ready(self, peer: PeerId) -> None:
        way = self._connector.way(peer)
        way.is_wanted = True
        async with way.lock:
            await self._connector.connect(peer, way)
            if self._improver is not None and self._improver.is_due(way):
                await self._improver.improve(peer, way, patient=False)
                if way.kind is None:  # whoever was to dial has closed the circuit, and could not
                    await self._connector.connect(peer, way)

    def is_fragile(self, peer: PeerId) -> bool:
        way = self._connector.way(peer)
        return way.is_fragile or self._clock() < way.changing_until_s

    def allowance(self, peer: PeerId, wanted: int) -> int:
        return self._budget.allowance(peer, self._connector.way(peer), wanted)

    async def renew(self, peer: PeerId) -> None:
        way = self._connector.way(peer)
        async with way.lock:
            if self._budget.left(peer, way) < LEAST_ALLOWANCE:  # else another transfer has renewed it meanwhile
                await self._connector.hang_up(peer, way)
                await self._connector.connect(peer, way)
                self.circuits_renewed += 1

    # ---- looking

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            found = await connections(self._connector.control)
            for peer, way in list(self._connector.ways.items()):
                if not way.lock.locked():
                    self._connector.note(peer, way, found.get(peer, []))
                    self._mend(peer, way)

    def _mend(self, peer: PeerId, way: Way) -> None:
        """When nothing is under way to the peer: replace a circuit that is near its end, or try for a better path."""
        if not way.is_wanted or self._rpc is None or self._improver is None or not self._rpc.is_idle(peer):
            return
        if self._budget.left(peer, way) < LEAST_ALLOWANCE:
            self._spawn(self._quietly(self.renew(peer)))
        elif self._improver.is_due(way):
            self._spawn(self._quietly(self._improve_at_leisure(peer, way, self._improver)))

    async def _improve_at_leisure(self, peer: PeerId, way: Way, improver: Improver) -> None:
        async with way.lock:
            await improver.improve(peer, way, patient=True)
            if way.kind is None:
                await self._connector.connect(peer, way)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RpcFailed as error:
            logger.info("%s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
