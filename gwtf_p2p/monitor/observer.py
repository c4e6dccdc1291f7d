"""Looks at a running swarm through its DHT, as a client that holds nothing: no stage, no record of its own, a passing
identity."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gwtf_p2p.live.discovery.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.libp2p.daemon import Daemon, running_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.monitor.presence import presence_of
from gwtf_p2p.monitor.swarm_state import Change, SwarmState
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, RunId, Stage
from gwtf_p2p.protocol.wire.records import RunRecord, StageRecord
from gwtf_p2p.protocol.wire.run_notice import RunNotice

RUN_WAIT_S = 20.0
RUN_LOOK_S = 0.5
LOOK_S = 2.0
LOOKS_PER_LEDGER = 5
"""Data peers publish what has been contributed no more often."""

OnLook = Callable[[SwarmState, list[Change]], bool]
"""Hears of every look at a run; True ends the observation of that run."""


async def observe(initial_peers: tuple[InitialPeer, ...], run_id: RunId, on_look: OnLook, stop: asyncio.Event) -> None:
    """Until `stop` is set or `on_look` has seen enough. Raises NetworkUnreachable, DaemonFailed, InputError (no such run)."""
    await observe_runs(initial_peers, (run_id,), on_look, stop)


@asynccontextmanager
async def observing_dht(initial_peers: tuple[InitialPeer, ...], run_id: RunId | None) -> AsyncIterator[tuple[Daemon, Dht]]:
    """A DHT client with a passing identity, for one run or all. Raises NetworkUnreachable, DaemonFailed."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwtf-observer-")))
        identity = create_identity(folder / "identity.key")
        options = P2POptions(
            initial_peers=initial_peers,
            dht_mode="client",
            auto_nat=False,
            nat_port_map=False,
            check_identity=False,
        )
        daemon = await stack.enter_async_context(running_daemon(options, identity))
        dht = await start_dht(daemon, identity, DhtOptions(run_id, client_mode=True))
        stack.push_async_callback(dht.stop)
        yield daemon, dht


async def list_runs(initial_peers: tuple[InitialPeer, ...]) -> list[RunNotice]:
    """The runs that there are, by id. Raises NetworkUnreachable, DaemonFailed."""
    async with observing_dht(initial_peers, None) as (_, dht):
        return await dht.read_runs()


async def observe_runs(
    initial_peers: tuple[InitialPeer, ...], run_ids: tuple[RunId, ...], on_look: OnLook, stop: asyncio.Event
) -> None:
    """`observe` several runs of one DHT, in turn; `state.run` says which one a look was at.

    Ends when `stop` is set or `on_look` has seen enough of every run. Raises as `observe` does.
    """
    async with observing_dht(initial_peers, run_ids[0] if len(run_ids) == 1 else None) as (daemon, dht):
        runs = [await _run(dht, run_id) for run_id in run_ids]
        watched = [(SwarmState(run), presence_of(daemon.control_path)) for run in runs]
        while watched and not stop.is_set():
            for state, presence in tuple(watched):
                records = await _records(dht, state.run)
                if state.looks % LOOKS_PER_LEDGER == 0 or not state.told.contributions.of:
                    data_peers = {record.peer for record in records if record.stage == DATA_STAGE}
                    state.hear_contributions(await dht.read_contributions(state.run.run_id), data_peers)
                silent = await presence.silent(records)
                if on_look(state, state.look(records, time.time(), silent)):
                    watched.remove((state, presence))
            try:
                async with asyncio.timeout(LOOK_S if watched else 0.0):
                    await stop.wait()
            except TimeoutError:
                continue


async def _records(dht: Dht, run: RunRecord) -> list[StageRecord]:
    stages = [Stage(number) for number in range(run.stages + 1)]
    return [record for record in await dht.read_stages(run.run_id, stages) if record.model_hash == run.model_hash]


async def _run(dht: Dht, run_id: RunId) -> RunRecord:
    end = time.monotonic() + RUN_WAIT_S
    while True:
        run = await dht.read_run(run_id)
        if run is not None:
            return run
        if time.monotonic() > end:
            raise InputError("--run_id", run_id, f"no such run on this DHT ({RUN_WAIT_S:.0f} s)")
        await asyncio.sleep(RUN_LOOK_S)
