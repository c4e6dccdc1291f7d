"""Keep a peer reachable: find out what others see of it, hold reservations at circuit relays, and say under which addresses to
call it.

Asked of every circuit relay (public peers that this one is connected to, its initial peers first), all at once: how do you see
me, dial me back, reserve a slot for me. All but the no of a dial-back is known after a round trip. Then each reservation is
renewed ahead, and a circuit relay that is lost is connected to again and asked anew; p2pd's AutoRelay would leave it alone for
an hour (source of go-libp2p 0.32.1). Public peers of the run are taken as circuit relays too while fewer than `ENOUGH_RELAYS`
hold a slot. When the machine's own address changes, everything is asked again. What is concluded from the answers is in
`reachability_rules`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from gwtf_p2p.live.libp2p.control import (
    DIAL_BACK_S,
    Reservation,
    ReservationRefused,
    StreamFailed,
    dial_back,
    identify,
    reserve,
)
from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import connect, connections, disconnect
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.nat.port_mapping import PortMapper
from gwtf_p2p.live.nat.reachability_rules import (
    Situation,
    circuit_maddrs,
    host_of,
    is_loopback,
    is_public_maddr,
    path_of,
    port_of,
    renew_in_s,
)
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
TRIES = 2
"""The first stream on a fresh connection stalls now and then; the second one does not (measured)."""

YES_S = 2.0
"""How long the start waits for a yes to a dial-back. A later one is still heard."""

RETRY_S = 5.0
"""Between attempts at a circuit relay that cannot be reached or has no slot."""

CHECK_S = 3.0
"""How often a held reservation's connection, and the machine's own address, are looked at."""

ASK_AGAIN_S = 300.0
"""When a peer that nobody has dialled back asks again."""

ENOUGH_RELAYS = 2
MOST_RELAYS = 4


class Reachability:
    """Of one peer. `on_change` is called, in the event loop, whenever `path` or `maddrs` may have changed."""

    def __init__(self, daemon: Daemon, relays: Sequence[InitialPeer], on_change: Callable[[], None]) -> None:
        self._daemon = daemon
        self._mapper = PortMapper(self._mapping_changed)
        self._relays = _by_peer(relays)
        self._on_change = on_change
        self._observed: dict[PeerId, str] = {}
        self._dialled_back = ""
        self._listens: tuple[str, ...] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self.reservations: dict[PeerId, Reservation] = {}

    @property
    def situation(self) -> Situation:
        announced = self._daemon.options.announce_maddrs
        return Situation(tuple(self._observed.values()), self._dialled_back, announced, self._listens)

    @property
    def path(self) -> PathType:
        return path_of(self.situation)[0]

    @property
    def reason(self) -> str:
        return path_of(self.situation)[1]

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """Public peers that hold, or may hold, a slot for this one."""
        return tuple(self._relays)

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where to call this peer, best first; a caller appends /p2p/ and the peer id."""
        held = sorted(self.reservations.values(), key=lambda slot: (-(slot.circuit_bytes or 1 << 62), slot.relay))
        return self.situation.direct + circuit_maddrs([self._relays[slot.relay] for slot in held])

    @property
    def circuit_bytes(self) -> int:
        """The smallest byte budget of a circuit to this peer; 0 is no limit."""
        return min((slot.circuit_bytes for slot in self.reservations.values() if slot.circuit_bytes), default=0)

    @property
    def circuit_s(self) -> int:
        return min((slot.circuit_s for slot in self.reservations.values() if slot.circuit_s), default=0)

    async def start(self) -> None:
        """Return when every circuit relay has answered, or its time is over. What is known by then is in `situation`."""
        await self._look_at_own()
        self._spawn(self._map_port())
        self._spawn(self._keep_asking())
        self._spawn(self._watch_own_address())
        if not self._relays:
            return
        asked = [asyncio.ensure_future(self._observe(relay)) for relay in self._relays]
        yes = [self._spawn(self._dial_back(relay)) for relay in self._relays]
        first = [self._hold(relay) for relay in self._relays]
        await asyncio.gather(*asked)
        await asyncio.wait(first, timeout=2 * ANSWER_S)
        if not self.situation.direct and self._could_be_dialled:
            await asyncio.wait(yes, timeout=YES_S, return_when=asyncio.FIRST_COMPLETED)
        kind, why = path_of(self.situation)
        logger.info("how others reach this peer: %s: %s", "directly" if kind is PathType.PUBLIC else kind.value, why)

    async def stop(self) -> None:
        """Reservations stay with the circuit relays until they expire. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._mapper.close()

    def add(self, relays: Sequence[InitialPeer]) -> None:
        """More of them, which need not answer yet."""
        for peer, maddr in _by_peer(relays).items():
            if peer not in self._relays and len(self._relays) < MOST_RELAYS:
                self._relays[peer] = maddr
                self._hold(peer)

    def learn(self, peer: PeerId, maddrs: Sequence[str]) -> None:
        """A public peer of the run, which may serve as a relay."""
        dialled = next((maddr for maddr in maddrs if is_public_maddr(maddr) and "/p2p-circuit" not in maddr), None)
        few = len(self.reservations) < ENOUGH_RELAYS and len(self._relays) < MOST_RELAYS
        if dialled and few and peer not in self._relays and peer != self._daemon.peer_id:
            self._relays[peer] = f"{dialled}/p2p/{peer}"
            self._spawn(self._observe(peer))
            self._hold(peer)

    async def look_again(self) -> None:
        """Everything anew: the machine has another address, or a long time has passed unseen."""
        self._dialled_back = ""
        self._observed.clear()
        await self._look_at_own()
        self._mapper.look_again()
        for peer in await connections(self._daemon.control_path):  # they are dead, and would be found so only after minutes
            await disconnect(self._daemon.control_path, peer)
        for relay in self._relays:
            self._note(relay, None)
        self._on_change()

    # ---- questions

    @property
    def _could_be_dialled(self) -> bool:
        return any(is_public_maddr(maddr) for maddr in self._observed.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    async def _look_at_own(self) -> None:
        own = [maddr.partition("/p2p/")[0] for maddr in await self._daemon.maddrs()]
        self._listens = tuple(maddr for maddr in own if "/tcp/" in maddr and not is_loopback(maddr)) or tuple(own)

    async def _observe(self, relay: PeerId) -> None:
        observed = ""
        for _ in range(TRIES):
            try:
                observed = (await identify(self._daemon.control_path, relay, ANSWER_S / TRIES)).observed
            except StreamFailed as error:
                logger.info("%s", error)
            else:
                break
        if observed and "/p2p-circuit" not in observed and self._observed.get(relay) != observed:
            self._observed[relay] = observed
            self._on_change()

    async def _dial_back(self, relay: PeerId) -> None:
        own = [maddr for maddr in self._listens if is_public_maddr(maddr)]
        if self._mapper.mapped is not None:
            own.insert(0, self._mapper.mapped.maddr)
        try:
            answer = await dial_back(self._daemon.control_path, self._daemon.peer_id, relay, own, DIAL_BACK_S)
        except StreamFailed as error:
            logger.info("%s", error)
            return
        if answer.address and not self._dialled_back:
            self._dialled_back = answer.address
            logger.info("dialled back at %s", answer.address)
            self._on_change()

    async def _map_port(self) -> None:
        """Have the router forward the port, where there is a router that does; then somebody has to try it."""
        port = next((port_of(maddr) for maddr in self._listens if not is_loopback(maddr)), 0)
        if not port or self.situation.announced:
            return
        if await self._mapper.map_port(port) is None:
            logger.info("no port mapping: %s", self._mapper.reason)
            return
        if not self.situation.direct:
            await asyncio.gather(*(self._dial_back(relay) for relay in self._relays))

    def _mapping_changed(self) -> None:
        self._dialled_back = ""
        self._on_change()
        for relay in self._relays:
            self._spawn(self._dial_back(relay))

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S)
            await self._look_at_own()
            if not self.situation.direct and self._could_be_dialled:
                for relay in list(self._relays)[:ENOUGH_RELAYS]:
                    await self._dial_back(relay)

    async def _watch_own_address(self) -> None:
        known = _source_addresses(self._relays.values())
        while True:
            await asyncio.sleep(CHECK_S)
            found = _source_addresses(self._relays.values())
            if found and found != known:
                logger.warning("this machine's address is %s now", ", ".join(sorted(found)))
                known = found
                await self.look_again()

    # ---- reservations

    def _hold(self, relay: PeerId) -> asyncio.Future[None]:
        """Reserve and renew for ever; the future is done after the first attempt."""
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spawn(self._keep_holding(relay, tried))
        return tried

    async def _keep_holding(self, relay: PeerId, tried: asyncio.Future[None]) -> None:
        is_first = True
        while True:
            held = await self._reserve(relay)
            if not tried.done():
                tried.set_result(None)
            if held is None:
                await asyncio.sleep(RETRY_S)
                continue
            if relay not in self._observed:
                self._spawn(self._observe(relay))
                if not self.situation.direct:
                    self._spawn(self._dial_back(relay))
            await self._keep(relay, renew_in_s(held.expires_at - time.time(), is_first))
            is_first = False

    async def _reserve(self, relay: PeerId) -> Reservation | None:
        held = None
        if not await connect(self._daemon.control_path, relay, [self._relays[relay]], ANSWER_S):
            try:
                held = await reserve(self._daemon.control_path, relay, ANSWER_S)
            except (StreamFailed, ReservationRefused) as error:
                logger.info("circuit relay %s: %s", relay[-6:], error)
        self._note(relay, held)
        return held

    async def _keep(self, relay: PeerId, seconds: float) -> None:
        """Return after so long, or earlier when the connection to the circuit relay, and with it its way to this peer, is
        gone."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(CHECK_S, left))
            if relay not in self.reservations:
                return
            if relay not in await connections(self._daemon.control_path):
                logger.info("circuit relay %s is lost", relay[-6:])
                self._note(relay, None)
                return

    def _note(self, relay: PeerId, held: Reservation | None) -> None:
        had = relay in self.reservations
        if held is None:
            self.reservations.pop(relay, None)
        else:
            self.reservations[relay] = held
        if had != (held is not None):
            self._on_change()


def _by_peer(relays: Sequence[InitialPeer]) -> dict[PeerId, str]:
    """One address of each; TCP where there is a choice, since plain streams over QUIC lose their tails (measured)."""
    found: dict[PeerId, str] = {}
    for relay in relays:
        if relay.relay is None and (relay.peer not in found or relay.transport == "tcp"):
            found[relay.peer] = relay.text
    return found


def _source_addresses(maddrs: Iterable[str]) -> frozenset[str]:
    """From which addresses this machine would send to these; empty when there is no route."""
    found = set()
    for maddr in maddrs:
        host = host_of(maddr)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if not maddr.startswith("/ip"):
            continue
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 9))  # nothing is sent: the kernel chooses the route
            except OSError:
                continue
            found.add(str(probe.getsockname()[0]))
    return frozenset(found)
