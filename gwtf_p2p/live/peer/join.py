"""Get into the swarm, stay in it, and find the run.

One initial peer that answers is enough; why each of the others does not is told. When none does, the peers of the cache are
tried, then everybody again after a pause that grows, until the time is over. Once in, the initial peers are pinged all the
time: one that has restarted is taken into the DHT's routing table again, and two halves of a DHT that lost each other meet
again at a peer that knows both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gwtf_p2p.live.discovery.dht import Dht
from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.order_book import OrderBook
from gwtf_p2p.live.discovery.peer_cache import PeerCache
from gwtf_p2p.live.discovery.run_trust import NotSecret, RunConflict, TokenNeeded, Trusted
from gwtf_p2p.live.discovery.signing import OwnedRun, own
from gwtf_p2p.live.libp2p.daemon import Daemon, DaemonFailed, NetworkUnreachable
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.peer.config import OnReport, PeerConfig, RunMismatch, RunNotThere, StartInterrupted
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.protocol.errors import OtherWireVersion
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.signed import terms_of

logger = logging.getLogger(__name__)

LOOK_S = 0.5
OTHERS_FIRST_S = 3.0
"""How long a peer that has the record lets others publish it: theirs may be newer. A record is found in well under a second."""

FIRST_TOLD_S, MOST_TOLD_S = 5.0, 60.0
"""When it is told for the first time that a run is waited for; later twice as late as the time before, at most so late."""

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
PING_S, REST_S = 10.0, 20.0
"""Between two pings of those that this peer has joined through; the second one, when all have answered."""

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
            reasons = [list(reason) for reason in error.reasons]
            on_report({"name": "waiting", "reasons": reasons, "seconds_left": round(left_s, 1)})
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, left_s)):
                    await stop.wait()
            pause_s = min(2 * pause_s, LAST_PAUSE_S)


async def unless_stopped(starting: Coroutine[Any, Any, Daemon], stop: asyncio.Event) -> Daemon:
    """What `starting` gives; it is cancelled, and leaves nothing behind, when `stop` is set meanwhile.

    Raises StartInterrupted then, as when p2pd does not start while `stop` is set: the same Ctrl+C may have ended it.
    """
    start, stopping = asyncio.ensure_future(starting), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
        return start.result()
    except (asyncio.CancelledError, DaemonFailed, NetworkUnreachable) as error:
        if not stop.is_set():
            raise
        raise StartInterrupted("told to stop before its p2pd was up") from error
    finally:
        start.cancel()
        stopping.cancel()


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
        answered = 0
        for peer, addresses in known.items():
            if not await connect(daemon.control_path, peer, addresses, _DIAL_S) and await dht.greet(peer):
                cache.note(addresses)
                answered += 1
        await asyncio.sleep(REST_S if answered == len(known) else PING_S)


async def find_run(
    config: PeerConfig, network: Network, kept: KeptRuns, stop: asyncio.Event, on_report: OnReport
) -> OwnedRun | None:
    """The record of the run to take part in, as its owner has signed it; None when told to stop meanwhile.

    Raises RunNotThere after the time that the config gives, RunMismatch for a run whose peers speak another wire version,
    RunConflict for one of another owner than is expected, or whose token this peer does not have. Anybody can publish what
    looks like such a run: so not at once, and not when this peer has the run on its disk.
    """
    dht = network.dht
    if config.new_run is not None:
        return await _begin_run(config.new_run, network)
    assert config.run_id is not None, "the command line asks for a run id or a run file"
    known = await asyncio.to_thread(joined_before, config, kept, network.secret)
    trusted = Trusted(config.run_owner, known.owner if known is not None else None)
    clock = asyncio.get_running_loop().time
    began = clock()
    told_after_s = FIRST_TOLD_S
    while not stop.is_set():
        run, refused = await _published(dht, config.run_id, trusted)
        waited_s = clock() - began
        if run is not None:
            return run
        if known is not None and waited_s >= OTHERS_FIRST_S:
            logger.info("nobody publishes run %s: this peer brings it back, from its own disk", config.run_id)
            if refused is not None:
                logger.warning("%s", refused)
            on_report({"name": "brings_back", "run_id": config.run_id})
            await dht.publish_run(known)
            return known
        if refused is not None and known is None and waited_s >= OTHERS_FIRST_S:
            raise refused
        if known is None and waited_s >= min(told_after_s, config.join_timeout_s):
            there = [notice.run_id for notice in await dht.read_runs()]
            if waited_s >= config.join_timeout_s:
                raise RunNotThere(config.run_id, waited_s, there)
            left_s = round(config.join_timeout_s - waited_s, 1)
            on_report({"name": "waiting_for_run", "run_id": config.run_id, "runs": there, "seconds_left": left_s})
            told_after_s = waited_s + min(told_after_s, MOST_TOLD_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await stop.wait()
    return None


def joined_before(config: PeerConfig, kept: KeptRuns, secret: RunSecret | None) -> OwnedRun | None:
    """The run as this peer has joined it before, if its user means that one. A secret run is brought back by nobody without its
    token, and no other with one."""
    known = kept.read(config.run_id) if config.run_id is not None else None
    if known is None or config.run_owner not in (None, known.owner):
        return None
    return known if (known.record.admission == "secret") == (secret is not None) else None


async def _begin_run(run: RunRecord, network: Network) -> OwnedRun:
    """A run that this peer owns, published. Raises RunConflict when somebody else's is there under its id."""
    owned = own(network.identity, run)
    try:
        await network.dht.read_run(run.run_id, Trusted(joined=owned.owner))
    except (OtherWireVersion, TokenNeeded, NotSecret) as error:  # nobody's run that this peer would believe
        logger.warning("%s", error)
    await network.dht.publish_run(owned)
    return owned


async def read_orders(network: Network, run: RunRecord, *, look: bool = True) -> OrderBook:
    """What the owner and the admins have ordered so far; without `look`, as far as this peer has read.

    Raises RunMismatch when this peer may not take part.
    """
    book = OrderBook(network.identity, terms_of(run))
    if look:
        book.hear(await network.dht.read_orders(book.terms))
    refuse_unless_admitted(book, network.identity.peer_id)
    return book


def refuse_unless_admitted(book: OrderBook, me: PeerId) -> None:
    """Raises RunMismatch."""
    why = book.entry.refusal(me)
    if why:
        raise RunMismatch(f"run {book.terms.run_id}: this peer, {me}, is {why} ({book.terms.owner})")


async def _published(dht: Dht, run_id: RunId, trusted: Trusted) -> tuple[OwnedRun | None, RunConflict | RunMismatch | None]:
    """The record to believe, or why those that there are cannot be."""
    try:
        return await dht.read_run(run_id, trusted), None
    except RunConflict as error:
        return None, error
    except OtherWireVersion as error:
        return None, RunMismatch(f"run {run_id}: {error}")
