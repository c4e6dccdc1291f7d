"""One peer from start to stop: identity, p2pd, DHT, clock, run record, and then its part in the run.

The order matters: the addresses are checked before the DHT is joined, the run is known before weights are made, and the record
says ONLINE only when the handlers answer. On every way out p2pd ends and the identity is free again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack

from gwtf_p2p.live.assembly import check_config
from gwtf_p2p.live.clock import ClockVerdict, check_clock
from gwtf_p2p.live.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.identity import IdentityLock, default_identity_path, load_or_create_identity
from gwtf_p2p.live.join_times import JoinTimes
from gwtf_p2p.live.p2p import Daemon, running_daemon
from gwtf_p2p.live.peer_config import ClockWrong, OnReport, PeerConfig
from gwtf_p2p.live.record_keeper import RECORD_PERIOD_S
from gwtf_p2p.live.running_peer import start_running, until
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.records import RunRecord

logger = logging.getLogger(__name__)

RUN_WAIT_S = 20.0
"""How long a run id may stay unknown: its record travels through the DHT in well under a second once it is published."""

RUN_LOOK_S = 0.5


async def run_peer(config: PeerConfig, on_report: OnReport, stop: asyncio.Event) -> None:
    """Run until `stop` is set.

    Raises InputError, NetworkUnreachable, DaemonFailed, IdentityInUse, ClockWrong, RunMismatch, RunConflict; anything else
    is our bug.
    """
    times = JoinTimes()
    identity = load_or_create_identity(config.identity_path or default_identity_path(os.environ))
    async with AsyncExitStack() as stack:
        stack.enter_context(IdentityLock(identity))
        daemon = await stack.enter_async_context(running_daemon(config.options, identity))
        times.mark("p2pd")
        run_id = config.new_run.run_id if config.new_run else config.run_id
        dht = await start_dht(daemon, identity, DhtOptions(run_id, RECORD_PERIOD_S, config.options.dht_client))
        stack.push_async_callback(dht.stop)
        times.mark("dht")
        on_report({"name": "started", "peer": daemon.peer_id, "maddrs": list(await daemon.maddrs()), "p2pd": daemon.pid})
        await _check_clock(daemon, dht)
        if config.role == "dht":
            await until(stop, daemon)
            return
        run = await _find_run(config, dht)
        check_config(config, run)
        times.mark("run")
        peer = await start_running(config, run, (daemon, dht), on_report, times)
        stack.push_async_callback(peer.close)
        await peer.serve(stop)


async def _check_clock(daemon: Daemon, dht: Dht) -> None:
    """Records expire in absolute time, so a wrong clock is told, and a very wrong one refused. Raises ClockWrong."""
    peers = sorted({peer.peer for peer in daemon.options.initial_peers})
    check = await check_clock(dht, peers)
    if check.verdict is ClockVerdict.REFUSE:
        raise ClockWrong(check.reason)
    if check.verdict is ClockVerdict.WARN:
        logger.warning("%s", check.reason)


async def _find_run(config: PeerConfig, dht: Dht) -> RunRecord:
    """Publish the new run, or read the record of the one to join. Raises InputError for an unknown run id."""
    if config.new_run is not None:
        await dht.publish_run(config.new_run)
        return config.new_run
    assert config.run_id is not None, "the command line asks for a run id or a run file"
    end = time.monotonic() + RUN_WAIT_S
    while True:
        run = await dht.read_run(config.run_id)
        if run is not None:
            return run
        if time.monotonic() > end:
            raise InputError("--run_id", config.run_id, f"no such run on this DHT ({RUN_WAIT_S:.0f} s)")
        await asyncio.sleep(RUN_LOOK_S)
