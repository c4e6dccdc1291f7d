"""Better paths than a circuit: the two ends agree over it how to get to each other without it.

Behind one router they go by their inner addresses, else by a punch (`reachability_rules`, `hole_punch`). Who dials closes the
circuit first, because p2pd dials nobody to whom it has a connection; transfers go on behind it (`rpc/push`). A failed attempt
is made again later, less and less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.nat import hole_punch as punch
from gwtf_p2p.live.nat.connect import CIRCUIT_S, DIRECT_S, Connector, Way
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.nat.reachability_rules import Role, Situation, host_of, is_likely, port_of, punch_role, share_a_router
from gwtf_p2p.live.rpc.api import CallFailed, Header, RpcFailed
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType

logger = logging.getLogger(__name__)

MEET = "meet"
PUNCH_S = 4.0
DIAL_AFTER_S = 0.1
"""The other end's door has to be open when the dial comes; what comes earlier is sent again after a second."""
LAST_RETRY_S = 600.0
FORGOTTEN_S = 150.0
"""No punch within this time after one. Routers remember its SYNs (Linux for 120 s), and hand the next one of the other end to
p2pd's listener, which takes it for a caller's; its answer does not fit what the router remembers and is dropped, and the port
is not free for the punch (measured: each try renews what the last one left, and none comes off).
"""


Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs something on, until the peer stops."""


class Improver:
    """One peer's side of every attempt; the service of the messages of kind `meet`. Made when there is a data plane."""

    def __init__(self, me: PeerId, rpc: Rpc, connector: Connector, reachability: Reachability, spawn: Spawn) -> None:
        self._me, self._rpc, self._connector, self._reachability, self._spawn = me, rpc, connector, reachability, spawn
        self._control, self._clock = connector.control, asyncio.get_running_loop().time
        rpc.add_service(MEET, self)

    def is_due(self, way: Way) -> bool:
        """Whether it is time to try for something better than a circuit."""
        return way.kind is PathType.RELAYED and not way.is_trying and self._clock() >= way.next_try_s

    async def improve(self, peer: PeerId, way: Way, *, patient: bool) -> None:
        """Agree with the other end on a path without a circuit relay, and take it; the lock of the way is held.

        `patient`: nothing waits for it, so that what is not likely may be tried.
        """
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
        """The other end of `improve`."""
        other, mine = _from_header(header), self._reachability.situation
        way = self._connector.way(sender)
        if way.is_trying and self._me < sender:
            return {"reason": "the other end is trying already"}
        role, reason = punch_role(_undialled(mine), _undialled(other), self._me < sender)
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

    async def _take_part(self, peer: PeerId, way: Way, role: Role, other: Situation) -> None:
        async with way.lock:
            await self._meet(peer, way, role, other)

    async def _meet(self, peer: PeerId, way: Way, role: Role, other: Situation) -> None:
        """This end's part; returns when the path is what it will be."""
        mine = self._reachability.situation
        near = share_a_router(mine, other)
        way.changing_until_s = self._clock() + DIRECT_S + CIRCUIT_S
        if not near:
            way.next_try_s = max(way.next_try_s, self._clock() + FORGOTTEN_S)
        if role is Role.DIALS:
            await asyncio.sleep(DIAL_AFTER_S)
            await self._connector.hang_up(peer, way)
            reason = await connect(self._control, peer, other.listens if near else other.observed[:1], PUNCH_S)
            await self._connector.look_at(peer, way)
            if way.kind in (None, PathType.RELAYED):
                logger.info("no better path to %s: %s", peer[-6:], reason or "the circuit relay was quicker")
                await self._connect_again(peer, way)
        elif not near:
            await self._wait_at_door(peer, way, other.observed[0])
        else:
            await asyncio.sleep(PUNCH_S / 2)
            await self._connector.look_at(peer, way)

    async def _connect_again(self, peer: PeerId, way: Way) -> None:
        try:
            await self._connector.connect(peer, way)
        except RpcFailed as error:
            logger.info("%s", error)

    async def _wait_at_door(self, peer: PeerId, way: Way, there: str) -> None:
        port = next((port_of(maddr) for maddr in self._reachability.situation.listens), 0)
        try:
            door = await punch.wait_at_door(port, host_of(there), port_of(there), PUNCH_S)
        except punch.PunchFailed as error:
            logger.info("no better path to %s: %s", peer[-6:], error)
        else:
            way.doors = [*way.doors, door]
            self._spawn(self._forget_door(way, door))
        await self._connector.look_at(peer, way)

    async def _forget_door(self, way: Way, door: punch.Splice) -> None:
        await door.ended()
        way.doors = [other for other in way.doors if other is not door]


def _undialled(situation: Situation) -> Situation:
    """As if nobody had dialled it: whoever asks has tried its direct addresses in vain."""
    return Situation(situation.observed, "", (), situation.listens)


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
