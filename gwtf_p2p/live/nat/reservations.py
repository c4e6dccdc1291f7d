"""A peer's slots at circuit relays: each is reserved, renewed ahead, and reserved anew when its circuit relay was lost.

p2pd's AutoRelay would leave a circuit relay that it has lost alone for an hour (source of go-libp2p 0.32.1).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gwtf_p2p.live.libp2p.control import Reservation, ReservationRefused, StreamFailed, reserve
from gwtf_p2p.live.libp2p.dialling import connect, connections
from gwtf_p2p.live.nat.reachability_rules import circuit_maddrs, renew_in_s
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long a circuit relay may take to be connected to, and again to answer."""

RETRY_S = 5.0
"""Between attempts at a circuit relay that cannot be reached or has no slot."""

CHECK_S = 3.0
"""How often a held reservation's connection is looked at."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Reservations:
    """Holds the slots of one peer. `relays` gives the multiaddr of each circuit relay that it is told to `hold` a slot at.

    `on_change` is called when a slot was won or lost, `on_held` with the circuit relay after each successful reservation.
    """

    def __init__(
        self,
        control: str,
        relays: dict[PeerId, str],
        spawn: Spawn,
        *,
        on_change: Callable[[], None],
        on_held: Callable[[PeerId], None],
    ) -> None:
        self._control, self._relays, self._spawn = control, relays, spawn
        self._on_change, self._on_held = on_change, on_held
        self._slots: dict[PeerId, Reservation] = {}

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where a circuit leads to this peer, those that carry most first."""
        held = sorted(self._slots.values(), key=lambda slot: (-(slot.circuit_bytes or 1 << 62), slot.relay))
        return circuit_maddrs([self._relays[slot.relay] for slot in held])

    @property
    def circuit_bytes(self) -> int:
        """The smallest byte budget of a circuit to this peer; 0 is no limit."""
        return min((slot.circuit_bytes for slot in self._slots.values() if slot.circuit_bytes), default=0)

    @property
    def circuit_s(self) -> int:
        """The shortest life of a circuit to this peer, in seconds; 0 is no limit."""
        return min((slot.circuit_s for slot in self._slots.values() if slot.circuit_s), default=0)

    def hold(self, relay: PeerId) -> asyncio.Future[None]:
        """Reserve and renew for ever; the future is done after the first attempt."""
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spawn(self._keep_holding(relay, tried))
        return tried

    def lose(self, relay: PeerId) -> None:
        """Its slot, where it gave one, is of no use any more."""
        self._note(relay, None)

    async def _keep_holding(self, relay: PeerId, tried: asyncio.Future[None]) -> None:
        is_first = True
        while True:
            held = await self._reserve(relay)
            if not tried.done():
                tried.set_result(None)
            if held is None:
                await asyncio.sleep(RETRY_S)
                continue
            self._on_held(relay)
            await self._keep(relay, renew_in_s(held.expires_at - time.time(), is_first))
            is_first = False

    async def _reserve(self, relay: PeerId) -> Reservation | None:
        held = None
        if not await connect(self._control, relay, [self._relays[relay]], ANSWER_S):
            try:
                held = await reserve(self._control, relay, ANSWER_S)
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
            if relay not in self._slots:
                return
            if relay not in await connections(self._control):
                logger.info("circuit relay %s is lost", relay[-6:])
                self._note(relay, None)
                return

    def _note(self, relay: PeerId, held: Reservation | None) -> None:
        had = relay in self._slots
        if held is None:
            self._slots.pop(relay, None)
        else:
            self._slots[relay] = held
        if had != (held is not None):
            self._on_change()
