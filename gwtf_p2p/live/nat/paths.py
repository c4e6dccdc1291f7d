"""The best path to each peer: direct if it can be dialled, else punched, else through a circuit relay; and what each path is.

Addresses come from the peers' records. Before a stream is opened, `ready` sees to a connection: the direct addresses first,
then the circuits. Where only a circuit is to be had, the two ends agree over it (a message of kind `meet`) how to get to each
other without it: behind one router by their inner addresses, else by a punch (`reachability_rules`, `punch`). Who dials
closes the circuit first, because p2pd dials nobody to whom it has a connection; transfers go on behind it (`rpc_push`). A
failed attempt is made again later, less and less often.

The connections of p2pd are looked at all the time: a path that has become better or worse is told to whoever measures links.
Circuits end after some bytes or seconds, which the called peer's record tells: `allowance` and `renew` replace them before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import connect, connections, disconnect, is_circuit
from gwtf_p2p.live.nat import hole_punch as punch
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.nat.reachability_rules import (
    NO_END,
    Role,
    Situation,
    circuit_left,
    host_of,
    is_likely,
    kind_of,
    port_of,
    punch_role,
    share_a_router,
)
from gwtf_p2p.live.rpc.api import CallFailed, FailureKind, Header, RpcFailed
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PathType, StageRecord

logger = logging.getLogger(__name__)

MEET = "meet"
LOOK_S = 3.0
DIRECT_S = 4.0
CIRCUIT_S = 6.0
PUNCH_S = 4.0
DIAL_AFTER_S = 0.1
"""The other end's door has to be open when the dial comes; what comes earlier is sent again after a second."""
FIRST_RETRY_S, LAST_RETRY_S = 30.0, 600.0
FORGOTTEN_S = 150.0
"""No punch within this time after one. Routers remember its SYNs (Linux for 120 s), and hand the next one of the other end to
p2pd's listener, which takes it for a caller's; its answer does not fit what the router remembers and is dropped, and the port
is not free for the punch (measured: each try renews what the last one left, and none comes off).
"""
LEAST_ALLOWANCE = 4096


@dataclass(slots=True)
class _Way:
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


class Paths:
    """`Ways` of one peer. Use: `attach`, and `stop` at the end."""

    def __init__(self, daemon: Daemon, reachability: Reachability) -> None:
        self._daemon, self._reachability = daemon, reachability
        self._control = daemon.control_path
        self._ways: dict[PeerId, _Way] = {}
        self._records: dict[PeerId, StageRecord] = {}
        self.circuits_renewed = 0
        self._rpc: Rpc | None = None
        self._on_change: Callable[[PeerId, PathType], None] = lambda peer, kind: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = asyncio.get_running_loop().time

    def attach(self, rpc: Rpc, on_change: Callable[[PeerId, PathType], None]) -> None:
        """`rpc`: the data plane over which peers agree on better paths. `on_change` hears of every new kind of path."""
        self._rpc, self._on_change = rpc, on_change
        rpc.add_service(MEET, self)
        self._spawn(self._keep_looking())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self._ways.values():
            for door in way.doors:
                door.close()

    def learn(self, view: NetworkView) -> None:
        """Addresses from the newest records. Those of a peer that has lost its record are kept: it may come back."""
        for peer, record in view.records.items():
            if record.maddrs:
                self._records[peer] = record

    def kind(self, peer: PeerId) -> PathType | None:
        """None while there is no connection."""
        return self._way(peer).kind

    def circuit_bytes(self, peer: PeerId) -> int:
        """What a circuit between this peer and that one carries each way; 0 is no limit."""
        record = self._records.get(peer)
        return _least(record.circuit_bytes if record else 0, self._reachability.circuit_bytes)

    # ---- as `rpc_outgoing.Ways`

    async def ready(self, peer: PeerId) -> None:
        way = self._way(peer)
        way.is_wanted = True
        async with way.lock:
            await self._connect(peer, way)
            if self._is_due(way):
                await self._improve(peer, way, patient=False)
                if way.kind is None:  # whoever was to dial has closed the circuit, and could not
                    await self._connect(peer, way)

    def is_fragile(self, peer: PeerId) -> bool:
        way = self._way(peer)
        return way.is_fragile or self._clock() < way.changing_until_s

    def allowance(self, peer: PeerId, wanted: int) -> int:
        way = self._way(peer)
        given = min(wanted, self._left(peer, way))
        if given < min(wanted, LEAST_ALLOWANCE):
            return 0
        way.sent_bytes += given
        return given

    async def renew(self, peer: PeerId) -> None:
        way = self._way(peer)
        async with way.lock:
            if self._left(peer, way) < LEAST_ALLOWANCE:  # else another transfer has renewed it meanwhile
                await self._hang_up(peer, way)
                await self._connect(peer, way)
                self.circuits_renewed += 1

    # ---- connecting

    def _way(self, peer: PeerId) -> _Way:
        return self._ways.setdefault(peer, _Way())

    async def _connect(self, peer: PeerId, way: _Way) -> None:
        """Raises RpcFailed (UNREACHABLE) with the reason of each address group."""
        maddrs = self._records[peer].maddrs if peer in self._records else ()
        direct = [maddr for maddr in maddrs if not is_circuit(maddr)]
        circuits = [maddr for maddr in maddrs if is_circuit(maddr)]
        reasons = []
        for group, limit_s in ((direct, DIRECT_S), (circuits, CIRCUIT_S)):
            if group:
                reason = await connect(self._control, peer, group, limit_s)
                if not reason:
                    break
                reasons.append(reason)
        else:
            if maddrs:
                raise RpcFailed(peer, FailureKind.UNREACHABLE, "; ".join(reasons))
        await self._look_at(peer, way)

    async def _look_at(self, peer: PeerId, way: _Way) -> None:
        self._note(peer, way, (await connections(self._control)).get(peer, []))

    def _note(self, peer: PeerId, way: _Way, remote: list[str]) -> None:
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
            if self._rpc is not None:
                self._rpc.path_changed(peer)
        self._on_change(peer, kind)

    def _is_behind_nat(self, peer: PeerId) -> bool:
        record = self._records.get(peer)
        theirs = record is not None and record.path is not PathType.PUBLIC
        return theirs and self._reachability.path is not PathType.PUBLIC

    async def _hang_up(self, peer: PeerId, way: _Way) -> None:
        way.changing_until_s = self._clock() + DIRECT_S + CIRCUIT_S
        way.kind = None
        await disconnect(self._control, peer)

    def _left(self, peer: PeerId, way: _Way) -> int:
        """Bytes that the path will carry yet."""
        if way.kind is not PathType.RELAYED:
            return NO_END
        record, own = self._records.get(peer), self._reachability
        budget_s = _least(record.circuit_s if record else 0, own.circuit_s)
        return circuit_left(self.circuit_bytes(peer), budget_s, way.sent_bytes, self._clock() - way.opened_s)

    # ---- better paths

    def _is_due(self, way: _Way) -> bool:
        return way.kind is PathType.RELAYED and not way.is_trying and self._clock() >= way.next_try_s

    async def _improve(self, peer: PeerId, way: _Way, *, patient: bool) -> None:
        """Agree with the other end on a path without a circuit relay, and take it; the lock of the way is held.

        `patient`: nothing waits for it, so that what is not likely may be tried.
        """
        assert self._rpc is not None, "attached before the first stream"
        mine = self._reachability.situation
        way.is_trying = True
        way.next_try_s, way.retry_s = self._clock() + way.retry_s, min(2 * way.retry_s, LAST_RETRY_S)
        try:
            answer = await self._rpc.signal(peer, {"kind": MEET, "patient": patient, **_to_header(mine)}, DIRECT_S)
            role, reason = _role_in(answer), str(answer.get("reason"))
            if role is None:
                logger.info("no better path to %s: %s", peer[-6:], reason)
                return
            await self._meet(peer, way, role, _from_header(answer))
        except (CallFailed, RemoteProtocolError) as error:
            logger.info("no better path to %s: %s", peer[-6:], error)
        finally:
            way.is_trying = False

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """The other end of `_improve`."""
        other, mine = _from_header(header), self._reachability.situation
        way = self._way(sender)
        if way.is_trying and self._daemon.peer_id < sender:
            return {"reason": "the other end is trying already"}
        role, reason = punch_role(_undialled(mine), _undialled(other), self._daemon.peer_id < sender)
        if role is not None and not is_likely(mine, other) and header.get("patient") is not True:
            role, reason = None, f"{reason}; that is tried when nothing is under way"
        if role is None:
            return {"reason": reason}
        way.next_try_s = self._clock() + way.retry_s
        self._spawn(self._take_part(sender, way, role, other))
        theirs = Role.WAITS if role is Role.DIALS else Role.DIALS
        return {"role": theirs.value, "reason": reason, **_to_header(mine)}

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        raise RemoteProtocolError("meet carries no payload")

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        raise RemoteProtocolError("meet carries no payload")

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None: ...

    async def _take_part(self, peer: PeerId, way: _Way, role: Role, other: Situation) -> None:
        async with way.lock:
            await self._meet(peer, way, role, other)

    async def _meet(self, peer: PeerId, way: _Way, role: Role, other: Situation) -> None:
        """This end's part; returns when the path is what it will be."""
        mine = self._reachability.situation
        near = share_a_router(mine, other)
        way.changing_until_s = self._clock() + DIRECT_S + CIRCUIT_S
        if not near:
            way.next_try_s = max(way.next_try_s, self._clock() + FORGOTTEN_S)
        if role is Role.DIALS:
            await asyncio.sleep(DIAL_AFTER_S)
            await self._hang_up(peer, way)
            reason = await connect(self._control, peer, other.listens if near else other.observed[:1], PUNCH_S)
            await self._look_at(peer, way)
            if way.kind in (None, PathType.RELAYED):
                logger.info("no better path to %s: %s", peer[-6:], reason or "the circuit relay was quicker")
                await self._connect_again(peer, way)
        elif not near:
            await self._wait_at_door(peer, way, other.observed[0])
        else:
            await asyncio.sleep(PUNCH_S / 2)
            await self._look_at(peer, way)

    async def _connect_again(self, peer: PeerId, way: _Way) -> None:
        try:
            await self._connect(peer, way)
        except RpcFailed as error:
            logger.info("%s", error)

    async def _wait_at_door(self, peer: PeerId, way: _Way, there: str) -> None:
        port = next((port_of(maddr) for maddr in self._reachability.situation.listens), 0)
        try:
            door = await punch.wait_at_door(port, host_of(there), port_of(there), PUNCH_S)
        except punch.PunchFailed as error:
            logger.info("no better path to %s: %s", peer[-6:], error)
        else:
            way.doors = [*way.doors, door]
            self._spawn(self._forget_door(way, door))
        await self._look_at(peer, way)

    async def _forget_door(self, way: _Way, door: punch.Splice) -> None:
        await door.ended()
        way.doors = [other for other in way.doors if other is not door]

    # ---- looking

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            found = await connections(self._control)
            for peer, way in list(self._ways.items()):
                if not way.lock.locked():
                    self._note(peer, way, found.get(peer, []))
                    self._mend(peer, way)

    def _mend(self, peer: PeerId, way: _Way) -> None:
        """When nothing is under way to the peer: replace a circuit that is near its end, or try for a better path."""
        if not way.is_wanted or self._rpc is None or not self._rpc.is_idle(peer):
            return
        if self._left(peer, way) < LEAST_ALLOWANCE:
            self._spawn(self._quietly(self.renew(peer)))
        elif self._is_due(way):
            self._spawn(self._quietly(self._improve_at_leisure(peer, way)))

    async def _improve_at_leisure(self, peer: PeerId, way: _Way) -> None:
        async with way.lock:
            await self._improve(peer, way, patient=True)
            if way.kind is None:
                await self._connect(peer, way)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RpcFailed as error:
            logger.info("%s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _undialled(situation: Situation) -> Situation:
    """As if nobody had dialled it: whoever asks has tried its direct addresses in vain."""
    return Situation(situation.observed, "", (), situation.listens)


def _least(one: int, other: int) -> int:
    """The smaller of two budgets, where 0 is no limit."""
    return min(one, other) if one and other else one or other


def _to_header(situation: Situation) -> Header:
    return {"observed": list(situation.observed), "listens": list(situation.listens)}


def _from_header(header: Header) -> Situation:
    """Raises RemoteProtocolError."""
    lists = [header.get(name) for name in ("observed", "listens")]
    for maddrs in lists:
        if not isinstance(maddrs, list) or len(maddrs) > 32 or not all(isinstance(m, str) and port_of(m) for m in maddrs):
            raise RemoteProtocolError(f"meet: expected lists of multiaddrs, got {maddrs!r:.60}")
    return Situation(tuple(lists[0] or ()), "", (), tuple(lists[1] or ()))


def _role_in(answer: Header) -> Role | None:
    value = answer.get("role")
    return Role(value) if value in {role.value for role in Role} else None
