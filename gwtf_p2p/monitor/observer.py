"""Looks at a running swarm through its DHT, as a client that holds nothing: no stage, no record of its own, a passing
identity."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gwtf_p2p.live.discovery.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.discovery.run_trust import Trusted
from gwtf_p2p.live.libp2p.daemon import Daemon, running_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.monitor.presence import presence_of
from gwtf_p2p.monitor.swarm_state import Change, SwarmState
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.trust.entry import Entry
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord
from gwtf_p2p.protocol.wire.signed import RunNotice, terms_of

RUN_WAIT_S = 20.0
RUN_LOOK_S = 0.5
LOOK_S = 2.0
LOOKS_PER_LEDGER = 5
"""Data peers publish what has been contributed no more often."""

OnLook = Callable[[SwarmState, list[Change]], bool]
"""Hears of every look at a run; True ends the observation of that run."""


@dataclass(frozen=True, slots=True)
class Access:
    """`owner`: whose run record is believed; `token`: that of a secret run."""

    owner: PeerId | None = None
    token: str = field(default="", repr=False)


NO_ACCESS = Access()


async def observe(initial_peers: tuple[InitialPeer, ...], run_id: RunId, on_look: OnLook, stop: asyncio.Event) -> None:
    """Until `stop` is set or `on_look` has seen enough. Raises NetworkUnreachable, DaemonFailed, InputError (no such run),
    RunConflict."""
    await observe_runs(initial_peers, (run_id,), on_look, stop)


@asynccontextmanager
async def observing_dht(
    initial_peers: tuple[InitialPeer, ...], run_id: RunId | None, token: str = ""
) -> AsyncIterator[tuple[Daemon, Dht]]:
    """A DHT client with a passing identity, for one run or all; `token`: that of a secret run. Raises NetworkUnreachable,
    DaemonFailed."""
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
        secret = await asyncio.to_thread(RunSecret, token, run_id) if token and run_id is not None else None
        dht = await start_dht(daemon, identity, DhtOptions(run_id, client_mode=True, secret=secret))
        stack.push_async_callback(dht.stop)
        yield daemon, dht


async def list_runs(initial_peers: tuple[InitialPeer, ...]) -> list[RunNotice]:
    """The runs that there are, by id. Raises NetworkUnreachable, DaemonFailed."""
    async with observing_dht(initial_peers, None) as (_, dht):
        return await dht.read_runs()


async def observe_runs(
    initial_peers: tuple[InitialPeer, ...],
    run_ids: tuple[RunId, ...],
    on_look: OnLook,
    stop: asyncio.Event,
    access: Access = NO_ACCESS,
) -> None:
    """`observe` several runs of one DHT, in turn; `state.run` says which one a look was at.

    Ends when `stop` is set or `on_look` has seen enough of every run. Raises as `observe` does.
    """
    assert len(run_ids) == 1 or access == NO_ACCESS, "an owner and a token are those of one run"
    async with observing_dht(initial_peers, run_ids[0] if len(run_ids) == 1 else None, access.token) as (daemon, dht):
        runs = [await find_run(dht, run_id, Trusted(access.owner)) for run_id in run_ids]
        watched = [(SwarmState(run), presence_of(daemon.control_path)) for run in runs]
        entries = {run.run_id: Entry(terms_of(run)) for run in runs}
        while watched and not stop.is_set():
            for state, presence in tuple(watched):
                entry = entries[state.run.run_id] = await _ordered(dht, entries[state.run.run_id])
                records = [record for record in await _records(dht, state.run) if not entry.refusal(record.peer)]
                if state.looks % LOOKS_PER_LEDGER == 0 or not state.told.contributions.of:
                    data_peers = {record.peer for record in records if record.stage == DATA_STAGE}
                    state.hear_contributions(await dht.read_contributions(state.run.run_id, data_peers), data_peers)
                silent = await presence.silent(records)
                if on_look(state, state.look(records, time.time(), silent)):
                    watched.remove((state, presence))
            try:
                async with asyncio.timeout(LOOK_S if watched else 0.0):
                    await stop.wait()
            except TimeoutError:
                continue


async def _ordered(dht: Dht, entry: Entry) -> Entry:
    """Who may take part, as it is said by now."""
    return entry.after(signed.order for signed in await dht.read_orders(entry.terms))


async def _records(dht: Dht, run: RunRecord) -> list[StageRecord]:
    """Of peers that take part; who only asks for forwards does not."""
    stages = [Stage(number) for number in range(run.stages + 1)]
    found = await dht.read_stages(run.run_id, stages)
    model_hash = run.model_hash
    return [record for record in found if record.model_hash == model_hash and record.state is not PeerState.ASKING]


async def find_run(dht: Dht, run_id: RunId, trusted: Trusted) -> RunRecord:
    """The run record, waited for. Raises InputError when it does not come, RunConflict, OtherWireVersion."""
    end = time.monotonic() + RUN_WAIT_S
    while True:
        run = await dht.read_run(run_id, trusted)
        if run is not None:
            return run.record
        if time.monotonic() > end:
            raise InputError("--run_id", run_id, f"no such run on this DHT ({RUN_WAIT_S:.0f} s)")
        await asyncio.sleep(RUN_LOOK_S)
