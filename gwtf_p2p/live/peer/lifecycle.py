"""One peer from start to stop: identity, p2pd, DHT, clock, run record, and then its part in the run.

The order matters: the addresses are checked before the DHT is joined, the run is known before weights are made, and the record
says ONLINE only when the handlers answer. On every way out p2pd ends and the identity is free again.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gwtf_p2p.live.compute.process_memory import set_imports_aside
from gwtf_p2p.live.discovery.clock_skew import ClockVerdict, check_clock
from gwtf_p2p.live.discovery.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.peer_cache import PeerCache
from gwtf_p2p.live.discovery.signing import OwnedRun
from gwtf_p2p.live.libp2p.daemon import (
    Daemon,
    DaemonEnded,
    DaemonFailed,
    NetworkUnreachable,
    start_daemon,
)
from gwtf_p2p.live.libp2p.daemon import until as until_stopped
from gwtf_p2p.live.libp2p.identity import Identity, IdentityLock, default_identity_path, load_or_create_identity, state_dir
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.libp2p.running_peers import running
from gwtf_p2p.live.lives.kept_daemon import leave_daemon, take_over
from gwtf_p2p.live.measure.bandwidth import PROTOCOL as SPEED
from gwtf_p2p.live.measure.bandwidth import serve_speed
from gwtf_p2p.live.measure.join_times import JoinTimes
from gwtf_p2p.live.measure.permission import ByHand, Permission
from gwtf_p2p.live.nat.circuit_relay import start_public_relay
from gwtf_p2p.live.nat.paths import Paths
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.peer.config import RECORD_PERIOD_S, ClockWrong, OnReport, PeerConfig
from gwtf_p2p.live.peer.join import find_run, join, joined_before, keep_joined, read_orders, unless_stopped
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.live.rpc.greeting import protocol_name
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.wire.records import PathType

if TYPE_CHECKING:
    from gwtf_p2p.live.peer.assembly import Prepared

logger = logging.getLogger(__name__)

MOST_DEATHS, DEATHS_WITHIN_S = 3, 600.0
"""A p2pd that dies more often than this will die again."""

_ENDS_ITSELF_S = 10.0


@dataclass(frozen=True, slots=True)
class _Own:
    """What a peer keeps when it starts again."""

    identity: Identity
    line: Line
    permission: Permission


TakePart = Callable[[PeerConfig, Network, KeptRuns, OnReport, asyncio.Event, JoinTimes], Awaitable[None]]


async def run_peer(
    config: PeerConfig,
    on_report: OnReport,
    stop: asyncio.Event,
    by_hand: ByHand | None = None,
    take_part: TakePart | None = None,
) -> None:
    """Run until `stop` is set, or until `take_part` is done: what is done once the swarm is joined, by default to serve.

    While `by_hand` says so, it pauses: what it holds is handed over, and it takes nothing.

    When p2pd dies under it, the peer starts anew with another one, as a crashed peer that returns: a few times, then not.
    Raises InputError, NetworkUnreachable, DaemonFailed, IdentityInUse, ClockWrong, RunMismatch, RunConflict, RunNotThere, and
    StartInterrupted when `stop` comes before p2pd is up; anything else is our bug.
    """
    identity = load_or_create_identity(config.identity_path or default_identity_path(os.environ))
    deaths: list[float] = []
    line = Line(config.upload_bytes_per_s, config.download_bytes_per_s)
    own = _Own(identity, line, Permission(config.wishes, line, identity.path.with_suffix(".usage.json"), by_hand))
    if config.nice:
        os.nice(config.nice)
    pauses = take_part is None and config.role in ("data", "peer")
    folder = state_dir(os.environ) if by_hand is not None else None  # others would hear of a signal by dying of it
    found = running(identity.path, folder) if pauses else nullcontext()
    with IdentityLock(identity), found, closing(own.permission):
        while True:
            try:
                await _run_once(config, own, on_report, stop, take_part)
                return
            except DaemonEnded as error:
                deaths = [at for at in deaths if time.monotonic() - at < DEATHS_WITHIN_S] + [time.monotonic()]
                if len(deaths) > MOST_DEATHS:
                    raise DaemonFailed(f"{error}, {len(deaths)} times in {DEATHS_WITHIN_S:.0f} s") from error
                logger.warning("%s; this peer starts again", error)
                on_report({"name": "restarting", "reason": str(error)})


async def _run_once(
    config: PeerConfig, own: _Own, on_report: OnReport, stop: asyncio.Event, take_part: TakePart | None
) -> None:
    identity, times = own.identity, _times(on_report)
    async with AsyncExitStack() as stack:
        cache = PeerCache(identity, config.new_run.run_id if config.new_run else config.run_id)
        others = tuple(peer for peer in config.options.initial_peers if peer.peer != identity.peer_id)
        if config.role != "bootstrap":
            loading = asyncio.ensure_future(asyncio.to_thread(_load))
            stack.callback(loading.cancel)  # it goes on to its end, of which nobody hears
        before = await take_over(config.handover, identity.peer_id) if config.handover is not None else None
        daemon = before or await _joined(config, others, identity, cache, stop, on_report)
        times.mark("p2pd")
        stack.push_async_callback(_stop_daemon, daemon)
        life = _Life(config, own, on_report, stop, take_part, times, others, cache, before is not None)
        await _while_it_lives(daemon, _run_on(daemon, life), life.serves)


@dataclass(frozen=True, slots=True)
class _Life:
    """What a peer runs on with once it has a p2pd; `again`: one that has outlived the life before. `serves` is set while the
    peer serves, and ends by itself when p2pd does, however long it takes to keep what it has."""

    config: PeerConfig
    own: _Own
    on_report: OnReport
    stop: asyncio.Event
    take_part: TakePart | None
    times: JoinTimes
    others: tuple[InitialPeer, ...]
    cache: PeerCache
    again: bool
    serves: asyncio.Event = field(default_factory=asyncio.Event)


async def _run_on(daemon: Daemon, life: _Life) -> None:
    config, identity, line, on_report = life.config, life.own.identity, life.own.line, life.on_report
    run_id = config.new_run.run_id if config.new_run else config.run_id
    async with AsyncExitStack() as stack:
        if config.handover is not None and run_id is not None:
            await leave_daemon(config.handover, daemon, (SPEED, protocol_name(run_id)))
        await serve_speed(daemon, line, lambda: life.own.permission.verdict().may_work)
        reachability = await _start_reachability(config, daemon, stack)
        life.times.mark("reachability")
        hidden = reachability is not None and reachability.path is not PathType.PUBLIC
        client = hidden or config.options.dht_mode == "client"
        secret = None
        if config.token and run_id is not None and config.role != "bootstrap":
            secret = await asyncio.to_thread(RunSecret, config.token, run_id)
        kept = KeptRuns(identity, config.checkpoints.folder)
        again = _again(config, kept, secret, on_report) if life.again and life.take_part is None else None
        if again is not None:
            stack.callback(again.preparing.cancel)
        dht = await start_dht(daemon, identity, DhtOptions(run_id, RECORD_PERIOD_S, client, secret))
        stack.push_async_callback(dht.stop)
        life.times.mark("dht")
        on_report(await _started(daemon, reachability))
        if not life.again:
            await _check_clock(daemon, dht)
        initial = tuple(dict.fromkeys((*life.others, *daemon.options.initial_peers)))
        joined = asyncio.ensure_future(keep_joined(daemon, dht, initial, life.cache))
        stack.callback(joined.cancel)
        if config.role == "bootstrap":
            set_imports_aside()
            await until_stopped(life.stop, daemon, joined)
            return
        network = Network(daemon, dht, identity, reachability, None, life.cache, line, secret=secret)
        if life.take_part is not None:
            await life.take_part(config, network, kept, on_report, life.stop, life.times)
            return
        await _take_part(life, network, kept, again)


async def _while_it_lives(daemon: Daemon, work: Coroutine[Any, Any, None], ends_itself: asyncio.Event) -> None:
    """Do `work`, which p2pd's end also ends where it only waits for an answer of it. Raises what `work` raises, or DaemonEnded.

    What notices the end itself, as `until` does, is given the time to end in its own way: all of it while `ends_itself`.
    """
    working, ended = asyncio.ensure_future(work), asyncio.ensure_future(daemon.wait_ended())
    try:
        await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({working}, timeout=None if ends_itself.is_set() else _ENDS_ITSELF_S)
        if not working.done():
            raise DaemonEnded("p2pd ended while this peer waited for it")
        working.result()
    finally:
        working.cancel()
        ended.cancel()
        await asyncio.gather(working, ended, return_exceptions=True)


async def _joined(
    config: PeerConfig,
    others: tuple[InitialPeer, ...],
    identity: Identity,
    cache: PeerCache,
    stop: asyncio.Event,
    on_report: OnReport,
) -> Daemon:
    """A p2pd that has joined the initial peers; that of a bootstrap peer may be alone."""
    start = partial(start_public_relay if config.options.is_public else start_daemon, identity=identity)
    options = replace(config.options, initial_peers=others)
    try:
        timeout_s = 0.0 if config.role == "bootstrap" else config.join_timeout_s
        return await unless_stopped(join(start, options, cache, timeout_s, stop, on_report), stop)
    except NetworkUnreachable as error:
        if config.role != "bootstrap":
            raise
        logger.warning("%s; this bootstrap peer serves alone until one of them is there", error)
        return await unless_stopped(start(replace(options, initial_peers=())), stop)


def _load() -> None:
    """What computes, with transformers: while p2pd starts and joins, which takes as long."""
    importlib.import_module("gwtf_p2p.live.peer.running_peer")


@dataclass(frozen=True, slots=True)
class _Again:
    """What a peer does again whose p2pd has outlived it: the same run, at the same place, made while it joins."""

    run: OwnedRun
    preparing: asyncio.Future[Prepared]


def _again(config: PeerConfig, kept: KeptRuns, secret: RunSecret | None, on_report: OnReport) -> _Again | None:
    """None where the life before had not come so far."""
    from gwtf_p2p.live.peer.assembly import kept_work, prepare

    run = joined_before(config, kept, secret)
    work = kept_work(config, run.record) if run is not None else None
    if run is None or work is None:
        return None
    preparing = asyncio.to_thread(prepare, config, run.record, lambda config: work.place, on_report, work.memory)
    return _Again(run, asyncio.ensure_future(preparing))


async def _take_part(life: _Life, network: Network, kept: KeptRuns, again: _Again | None) -> None:
    """From the run's record to the way out, by way of other stages where this peer is needed more, and of pauses."""
    config, on_report, stop, permission, times = life.config, life.on_report, life.stop, life.own.permission, life.times
    # A bootstrap peer never comes here, and does without what computes: these modules import transformers.
    from gwtf_p2p.live.peer.assembly import check_config
    from gwtf_p2p.live.peer.reporting import Reporting
    from gwtf_p2p.live.peer.running_peer import start_running

    set_imports_aside()
    owned = again.run if again is not None else await find_run(config, network, kept, stop, on_report)
    if owned is None:
        return
    run = owned.record
    check_config(config, run)
    told = {"run_id": run.run_id, "owner": run.owner, "stages": run.stages, "total_iterations": run.total_iterations}
    told["replica_sync"] = run.replica_sync
    on_report({"name": "run", **told})
    kept.keep(owned)
    orders = await read_orders(network, run, look=again is None)
    preparing = again.preparing if again is not None else None
    times.mark("run")
    while True:
        waiting = asyncio.ensure_future(permission.allowed(on_report))
        try:
            await until_stopped(stop, network.daemon, waiting)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if stop.is_set():
            return
        reachability = network.reachability
        paths = Paths(network.daemon, reachability) if reachability is not None else None
        connected = replace(network, paths=paths, run=owned, orders=orders)
        peer = await start_running(config, run, connected, Reporting(on_report, times), preparing)
        preparing = None
        life.serves.set()
        try:
            stage = await peer.serve(stop, permission)
        finally:
            await peer.close()
            life.serves.clear()
        times = _times(on_report)
        if peer.pauses:
            continue  # without its weights: what it had to keep is on its disk
        if stage is None:
            return
        logger.info("this peer moves to stage %d", stage)
        config = replace(config, stage=stage, faults=())


def _times(on_report: OnReport) -> JoinTimes:
    """Each step of joining is told when it is done."""
    return JoinTimes(on_mark=lambda step, seconds: on_report({"name": "step", "done": step, "seconds": seconds}))


async def _stop_daemon(daemon: Daemon) -> None:
    await asyncio.shield(daemon.stop())


async def _start_reachability(config: PeerConfig, daemon: Daemon, stack: AsyncExitStack) -> Reachability | None:
    """None for those whose ways p2pd finds alone, and for bootstrap peers, which are public or useless."""
    if not config.options.auto_nat or config.role == "bootstrap":
        return None
    reachability = Reachability(daemon, daemon.options.initial_peers, lambda: None)
    stack.push_async_callback(reachability.stop)
    await reachability.start()
    reachability.add(config.options.initial_peers)  # those that do not answer now may do so later
    return reachability


async def _started(daemon: Daemon, reachability: Reachability | None) -> dict[str, Any]:
    maddrs = list(await daemon.maddrs())
    report = {"name": "started", "peer": daemon.peer_id, "maddrs": maddrs, "p2pd": daemon.pid}
    if daemon.options.is_public and daemon.options.lending is not None:
        report["lends"] = daemon.options.lending.words
        logger.info("%s", report["lends"])
    if reachability is not None:
        report["maddrs"] = [f"{maddr}/p2p/{daemon.peer_id}" for maddr in reachability.maddrs] or maddrs
        report |= {"path": reachability.path.value, "why": reachability.reason}
    return report


async def _check_clock(daemon: Daemon, dht: Dht) -> None:
    """Records expire in absolute time, so a wrong clock is told, and a very wrong one refused. Raises ClockWrong."""
    peers = sorted({peer.peer for peer in daemon.options.initial_peers})
    check = await check_clock(dht, peers)
    if check.verdict is ClockVerdict.REFUSE:
        raise ClockWrong(check.reason)
    if check.verdict is ClockVerdict.WARN:
        logger.warning("%s", check.reason)
