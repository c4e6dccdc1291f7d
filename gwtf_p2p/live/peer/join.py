"""Get into the swarm, and stay in it.

One initial peer that answers is enough; why each of the others does not is told. When none does, the peers of the cache are
tried, then everybody again after a pause that grows, until the time is over. Once in, the initial peers are pinged all the
time: one that has restarted is taken into the DHT's routing table again, and two halves of a DHT that lost each other meet
again at a peer that knows both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from gwtf_p2p.live.discovery.dht import Dht
from gwtf_p2p.live.discovery.peer_cache import PeerCache
from gwtf_p2p.live.libp2p.daemon import Daemon, NetworkUnreachable
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import OnReport
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
PING_S = 10.0
_DIAL_S = 5.0

Start = Callable[[P2POptions], Awaitable[Daemon]]


async def join(
    start: Start, options: P2POptions, cache: PeerCache, timeout_s: float, stop: asyncio.Event, on_report: OnReport
) -> Daemon:
    """A running p2pd that has joined. Raises what `start` raises; NetworkUnreachable only after `timeout_s`, or at `stop`."""
    clock = asyncio.get_running_loop().time
    end, pause_s = clock() + timeout_s, FIRST_PAUSE_S
    while True:
        try:
            return await start(options)
        except NetworkUnreachable as error:
            daemon = await _through_cache(start, options, cache)
            if daemon is not None:
                return daemon
            left_s = end - clock()
            if left_s <= 0 or stop.is_set():
                raise
            for text, why in error.reasons:
                logger.warning("%s: %s", text, why)
            reasons = [list(reason) for reason in error.reasons]
            on_report({"name": "waiting", "reasons": reasons, "seconds_left": round(left_s, 1)})
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, left_s)):
                    await stop.wait()
            pause_s = min(2 * pause_s, LAST_PAUSE_S)


async def _through_cache(start: Start, options: P2POptions, cache: PeerCache) -> Daemon | None:
    known = tuple(peer for peer in cache.peers() if peer not in options.initial_peers)
    if not known:
        return None
    try:
        daemon = await start(replace(options, initial_peers=known))
    except NetworkUnreachable:
        return None
    logger.warning("no initial peer answers; joined through peers known from before")
    return daemon


async def keep_joined(daemon: Daemon, dht: Dht, peers: Sequence[InitialPeer], cache: PeerCache) -> None:
    """Ping everybody in `peers` for ever, and note who answers."""
    known: dict[PeerId, list[str]] = {}
    for initial in peers:
        known.setdefault(initial.peer, []).append(initial.text)
    while True:
        for peer, addresses in known.items():
            if not await connect(daemon.control_path, peer, addresses, _DIAL_S) and await dht.greet(peer):
                cache.note(addresses)
        await asyncio.sleep(PING_S)
