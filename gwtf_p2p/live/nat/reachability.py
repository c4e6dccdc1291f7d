"""Keep a peer reachable: find out what others see of it, hold reservations at circuit relays, and say under which addresses to
call it.

Asked of every circuit relay (public peers that this one is connected to, its initial peers first), all at once: how do you see
me, dial me back (`observed`), reserve a slot for me (`reservations`). Then each reservation is renewed ahead, and a circuit
relay that is lost is connected to again and asked anew. Public peers of the run are taken as circuit relays too while fewer
than `ENOUGH_RELAYS` hold a slot. When the machine's own address changes, everything is asked again. What is concluded from the
answers is in `reachability_rules`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import connections, disconnect
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.nat.observed import Observed
from gwtf_p2p.live.nat.reachability_rules import Situation, host_of, is_public_maddr, path_of
from gwtf_p2p.live.nat.reservations import ANSWER_S, Reservations
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType

logger = logging.getLogger(__name__)

YES_S = 2.0
"""How long the start waits for a yes to a dial-back. A later one is still heard."""

CHECK_S = 3.0
"""How often the machine's own address is looked at."""

ASK_AGAIN_S = 300.0
"""When a peer that nobody has dialled back asks again."""

ENOUGH_RELAYS = 2
MOST_RELAYS = 4


class Reachability:
    """Keeps one peer reachable. `on_change` is called, in the event loop, whenever `path` or `maddrs` may have changed."""

    def __init__(self, daemon: Daemon, relays: Sequence[InitialPeer], on_change: Callable[[], None]) -> None:
        self._daemon = daemon
        self._relays = _by_peer(relays)
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._observed = Observed(daemon, self._relays, self._spawn, on_change)
        self._reservations = Reservations(
            daemon.control_path, self._relays, self._spawn, on_change=on_change, on_held=self._held
        )

    @property
    def situation(self) -> Situation:
        """What others see of this peer, as far as is known."""
        return self._observed.situation

    @property
    def path(self) -> PathType:
        """How others reach this peer."""
        return path_of(self.situation)[0]

    @property
    def reason(self) -> str:
        """Why `path` is concluded."""
        return path_of(self.situation)[1]

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where to call this peer, best first; a caller appends /p2p/ and the peer id."""
        return self.situation.direct + self._reservations.maddrs

    @property
    def circuit_bytes(self) -> int:
        """The smallest byte budget of a circuit to this peer; 0 is no limit."""
        return self._reservations.circuit_bytes

    @property
    def circuit_s(self) -> int:
        """The shortest life of a circuit to this peer, in seconds; 0 is no limit."""
        return self._reservations.circuit_s

    async def start(self) -> None:
        """Return when every circuit relay has answered, or its time is over. What is known by then is in `situation`."""
        observed = self._observed
        await observed.look_at_own()
        self._spawn(observed.map_port())
        self._spawn(self._keep_asking())
        self._spawn(self._watch_own_address())
        if not self._relays:
            return
        asked = [asyncio.ensure_future(observed.ask(relay)) for relay in self._relays]
        yes = [self._spawn(observed.be_dialled_back(relay)) for relay in self._relays]
        first = [self._reservations.hold(relay) for relay in self._relays]
        await asyncio.gather(*asked)
        await asyncio.wait(first, timeout=2 * ANSWER_S)
        if not self.situation.direct and observed.could_be_dialled:
            await asyncio.wait(yes, timeout=YES_S, return_when=asyncio.FIRST_COMPLETED)
        kind, why = path_of(self.situation)
        logger.info("how others reach this peer: %s: %s", "directly" if kind is PathType.PUBLIC else kind.value, why)

    async def stop(self) -> None:
        """Reservations stay with the circuit relays until they expire. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._observed.close()

    def add(self, relays: Sequence[InitialPeer]) -> None:
        """More of them, which need not answer yet."""
        for peer, maddr in _by_peer(relays).items():
            if peer not in self._relays and len(self._relays) < MOST_RELAYS:
                self._relays[peer] = maddr
                self._reservations.hold(peer)

    def learn(self, peer: PeerId, maddrs: Sequence[str]) -> None:
        """A public peer of the run, which may serve as a relay."""
        dialled = next((maddr for maddr in maddrs if is_public_maddr(maddr) and "/p2p-circuit" not in maddr), None)
        few = len(self._reservations) < ENOUGH_RELAYS and len(self._relays) < MOST_RELAYS
        if dialled and few and peer not in self._relays and peer != self._daemon.peer_id:
            self._relays[peer] = f"{dialled}/p2p/{peer}"
            self._spawn(self._observed.ask(peer))
            self._reservations.hold(peer)

    async def look_again(self) -> None:
        """Everything anew: the machine has another address, or a long time has passed unseen."""
        await self._observed.look_again()
        for peer in await connections(self._daemon.control_path):  # they are dead, and would be found so only after minutes
            await disconnect(self._daemon.control_path, peer)
        for relay in self._relays:
            self._reservations.lose(relay)
        self._on_change()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def _held(self, relay: PeerId) -> None:
        """A circuit relay that answers may not have been there when all were asked."""
        if not self._observed.has_asked(relay):
            self._spawn(self._observed.ask(relay))
            if not self.situation.direct:
                self._spawn(self._observed.be_dialled_back(relay))

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S)
            await self._observed.look_at_own()
            if not self.situation.direct and self._observed.could_be_dialled:
                for relay in list(self._relays)[:ENOUGH_RELAYS]:
                    await self._observed.be_dialled_back(relay)

    async def _watch_own_address(self) -> None:
        known = _source_addresses(self._relays.values())
        while True:
            await asyncio.sleep(CHECK_S)
            found = _source_addresses(self._relays.values())
            if found and found != known:
                logger.warning("this machine's address is %s now", ", ".join(sorted(found)))
                known = found
                await self.look_again()


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
