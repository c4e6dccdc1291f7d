"""Keep a peer reachable: find out what others see of it, hold reservations at relays, and say under which addresses to call it.

Asked of every relay (public peers that this one is connected to, its initial peers first), all at once: how do you see me, dial
me back, reserve a slot for me. All but the no of a dial-back is known after a round trip. Then each reservation is renewed
ahead, and a relay that is lost is connected to again and asked anew; p2pd's AutoRelay would leave it alone for an hour (source
of go-libp2p 0.32.1). What is concluded from the answers is in `reachability_rules`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from gwtf_p2p.live.libp2p_streams import (
    DIAL_BACK_S,
    Reservation,
    ReservationRefused,
    StreamFailed,
    dial_back,
    identify,
    reserve,
)
from gwtf_p2p.live.maddrs import InitialPeer
from gwtf_p2p.live.p2p import Daemon
from gwtf_p2p.live.reachability_rules import Situation, circuit_maddrs, path_of, renew_in_s
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.records import PathType

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
YES_S = 2.0
"""How long the start waits for a yes to a dial-back. A later one is still heard."""

RETRY_S = 5.0
"""Between attempts at a relay that cannot be reached or has no slot."""

CHECK_S = 5.0
"""How often a held reservation's connection is looked at: with the connection, the relay's way to this peer is gone."""


class Reachability:
    """Of one peer. `on_change` is called, in the event loop, whenever `path` or `maddrs` may have changed."""

    def __init__(self, daemon: Daemon, relays: Sequence[InitialPeer], on_change: Callable[[], None]) -> None:
        self._daemon = daemon
        self._relays = {relay.peer: relay for relay in relays if relay.relay is None}
        self._on_change = on_change
        self._observed: dict[PeerId, str] = {}
        self._dialled_back = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.reservations: dict[PeerId, Reservation] = {}

    @property
    def situation(self) -> Situation:
        return Situation(tuple(self._observed.values()), self._dialled_back)

    @property
    def path(self) -> PathType:
        return path_of(self.situation)[0]

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where to call this peer, best first; a caller appends /p2p/ and the peer id."""
        direct = (self._dialled_back,) if self._dialled_back else ()
        return direct + circuit_maddrs([self._relays[relay].text for relay in sorted(self.reservations)])

    async def start(self) -> None:
        """Return when every relay has answered, or its time is over. What is known by then is in `situation`."""
        asked = [asyncio.ensure_future(self._observe(relay)) for relay in self._relays]
        yes = [asyncio.ensure_future(self._dial_back(relay)) for relay in self._relays]
        first = [asyncio.get_running_loop().create_future() for _ in self._relays]
        self._tasks = yes + [
            asyncio.ensure_future(self._hold(relay, tried)) for relay, tried in zip(self._relays, first, strict=True)
        ]
        if not self._relays:
            return
        await asyncio.gather(*asked)
        await asyncio.wait(first, timeout=2 * ANSWER_S)
        await asyncio.wait(yes, timeout=YES_S, return_when=asyncio.FIRST_COMPLETED)
        logger.info("%s: %s", *path_of(self.situation))

    async def stop(self) -> None:
        """Reservations stay with the relays until they expire. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _observe(self, relay: PeerId) -> None:
        try:
            observed = (await identify(self._daemon.control_path, relay, ANSWER_S)).observed
        except StreamFailed as error:
            logger.info("%s", error)
            return
        if observed:
            self._observed[relay] = observed

    async def _dial_back(self, relay: PeerId) -> None:
        try:
            answer = await dial_back(self._daemon.control_path, self._daemon.peer_id, relay, (), DIAL_BACK_S)
        except StreamFailed as error:
            logger.info("%s", error)
            return
        if answer.address and not self._dialled_back:
            self._dialled_back = answer.address
            self._on_change()

    async def _hold(self, relay: PeerId, tried: asyncio.Future[None]) -> None:
        """Reserve and renew for ever; `tried` is done after the first attempt."""
        is_first = True
        while True:
            held = await self._reserve(relay)
            if not tried.done():
                tried.set_result(None)
            if held is None:
                await asyncio.sleep(RETRY_S)
                continue
            await self._keep(relay, renew_in_s(held.expires_at - time.time(), is_first))
            is_first = False

    async def _reserve(self, relay: PeerId) -> Reservation | None:
        held = None
        if not await connect(self._daemon.control_path, relay, [self._relays[relay].text], ANSWER_S):
            try:
                held = await reserve(self._daemon.control_path, relay, ANSWER_S)
            except (StreamFailed, ReservationRefused) as error:
                logger.info("relay %s: %s", relay[-6:], error)
        self._note(relay, held)
        return held

    async def _keep(self, relay: PeerId, seconds: float) -> None:
        """Return after so long, or earlier when the connection to the relay is gone."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(CHECK_S, left))
            if relay not in {str(info.peer_id) for info in await self._daemon.p2p.list_peers()}:
                logger.info("relay %s is lost", relay[-6:])
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
