"""What others see of this peer: under which address, whether they can dial it, and through which port of its router.

All but the no of a dial-back is known after a round trip. What is concluded from the answers is in `reachability_rules`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from gwtf_p2p.live.libp2p.control import DIAL_BACK_S, StreamFailed, dial_back, identify
from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.nat.port_mapping import PortMapper
from gwtf_p2p.live.nat.reachability_rules import Situation, is_loopback, is_public_maddr, port_of
from gwtf_p2p.live.nat.reservations import Spawn
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

ANSWER_S = 5.0
TRIES = 2
"""The first stream on a fresh connection stalls now and then; the second one does not (measured)."""


class Observed:
    """Asks circuit relays, and the router, about one peer. `relays` are all there are to be asked, as they are now.

    `on_change` is called whenever `situation` has changed.
    """

    def __init__(self, daemon: Daemon, relays: Mapping[PeerId, str], spawn: Spawn, on_change: Callable[[], None]) -> None:
        self._daemon, self._relays, self._spawn, self._on_change = daemon, relays, spawn, on_change
        self._mapper = PortMapper(self._mapping_changed)
        self._seen: dict[PeerId, str] = {}
        self._dialled_back = ""
        self._listens: tuple[str, ...] = ()

    @property
    def situation(self) -> Situation:
        """All that is known now."""
        announced = self._daemon.options.announce_maddrs
        return Situation(tuple(self._seen.values()), self._dialled_back, announced, self._listens)

    @property
    def could_be_dialled(self) -> bool:
        """Somebody sees this peer at an address of the internet."""
        return any(is_public_maddr(maddr) for maddr in self._seen.values())

    def has_asked(self, relay: PeerId) -> bool:
        """Whether this circuit relay has told how it sees this peer."""
        return relay in self._seen

    async def look_at_own(self) -> None:
        """The addresses of the machine's own interfaces."""
        own = [maddr.partition("/p2p/")[0] for maddr in await self._daemon.maddrs()]
        self._listens = tuple(maddr for maddr in own if "/tcp/" in maddr and not is_loopback(maddr)) or tuple(own)

    async def look_again(self) -> None:
        """Forget what others have seen, for the machine has another address."""
        self._dialled_back = ""
        self._seen.clear()
        await self.look_at_own()
        self._mapper.look_again()

    async def ask(self, relay: PeerId) -> None:
        """How do you see me?"""
        observed = ""
        for _ in range(TRIES):
            try:
                observed = (await identify(self._daemon.control_path, relay, ANSWER_S / TRIES)).observed
            except StreamFailed as error:
                logger.info("%s", error)
            else:
                break
        if observed and "/p2p-circuit" not in observed and self._seen.get(relay) != observed:
            self._seen[relay] = observed
            self._on_change()

    async def be_dialled_back(self, relay: PeerId) -> None:
        """Dial me back! A yes is heard after a round trip, a no after DIAL_BACK_S."""
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

    async def map_port(self) -> None:
        """Have the router forward the port, where there is a router that does; then somebody has to try it."""
        port = next((port_of(maddr) for maddr in self._listens if not is_loopback(maddr)), 0)
        if not port or self.situation.announced:
            return
        if await self._mapper.map_port(port) is None:
            logger.info("no port mapping: %s", self._mapper.reason)
            return
        if not self.situation.direct:
            await asyncio.gather(*(self.be_dialled_back(relay) for relay in self._relays))

    def _mapping_changed(self) -> None:
        self._dialled_back = ""
        self._on_change()
        for relay in self._relays:
            self._spawn(self.be_dialled_back(relay))

    async def close(self) -> None:
        """Take the port mapping back. May be called twice."""
        await self._mapper.close()
