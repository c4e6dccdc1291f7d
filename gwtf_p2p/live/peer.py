"""One peer from start to stop: identity, p2pd, DHT, run record, model part, state machine, and the way out.

What a peer is told on the command line is a `PeerConfig`; everything else comes from the run record. The order matters: the
address is checked before the DHT is joined, the run is known before weights are made, and the record says ONLINE only when the
handlers answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwtf_p2p.live.averaging import Averager, AveragingFailed, AveragingGroup
from gwtf_p2p.live.clock import ClockVerdict, check_clock
from gwtf_p2p.live.compute import Compute
from gwtf_p2p.live.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.driver import AverageFailureError, AverageResult, Driver, DriverParts
from gwtf_p2p.live.event_log import EventLog
from gwtf_p2p.live.identity import IdentityLock, create_identity, default_identity_path, load_or_create_identity
from gwtf_p2p.live.p2p import Daemon, P2POptions, running_daemon
from gwtf_p2p.live.probes import LinkProbes
from gwtf_p2p.live.rpc import Rpc
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.data_peer import DataPeer, DataPeerConfig
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, RunId, Stage
from gwtf_p2p.protocol.joining import choose_stage
from gwtf_p2p.protocol.messages import Close
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.publishing import Surroundings, stage_record
from gwtf_p2p.protocol.records import RunRecord, StageRecord
from gwtf_p2p.protocol.relay_peer import RelayPeer
from gwtf_p2p.protocol.routers.factory import default_config, make_router, router_kind
from gwtf_p2p.training.executor import ExecutorConfig

logger = logging.getLogger(__name__)

ROLES = ("dht", "data", "peer")
RUN_WAIT_S = 20.0
"""How long a run id may stay unknown: its record travels through the DHT in well under a second once it is published."""

RECORD_PERIOD_S = 10.0
VIEW_PERIOD_S = 2.0
AVERAGE_BOUND_S = 600.0
"""Only a bound on a leaked attempt: the leader's deadlines, from measured times, end an attempt long before."""

PUBLISH_SOON_S = 0.2
"""Publish requests within this time go out as one record."""

OnReport = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PeerConfig:
    """What one peer is told. `stage` None: the newcomer chooses. `shard` None: the lowest that no live data peer holds."""

    role: str
    options: P2POptions = field(default_factory=P2POptions)
    identity_path: Path | None = None
    fresh_identity: bool = False
    run_id: RunId | None = None
    new_run: RunRecord | None = None
    stage: int | None = None
    shard: int | None = None
    capacity: int = 4
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    threads: int = 0
    event_log: Path | None = None


class ClockWrong(Exception):
    """This machine's clock is so far off that its records would be born expired. Exit code 6."""

    exit_code = 6


class RunMismatch(Exception):
    """This peer cannot take part in the run. Exit code 5."""

    exit_code = 5


async def run_peer(config: PeerConfig, on_report: OnReport, stop: asyncio.Event) -> None:
    """Run until `stop` is set. Raises InputError, NetworkUnreachable, IdentityInUse, RunMismatch; other errors are our bugs."""
    path = config.identity_path or default_identity_path(os.environ)
    identity = create_identity(path) if config.fresh_identity else load_or_create_identity(path)
    async with AsyncExitStack() as stack:
        stack.enter_context(IdentityLock(identity))
        daemon = await stack.enter_async_context(running_daemon(config.options, identity))
        run_id = config.new_run.run_id if config.new_run else config.run_id
        dht = await start_dht(daemon, identity, DhtOptions(run_id, RECORD_PERIOD_S, config.options.dht_client))
        stack.push_async_callback(dht.stop)
        on_report({"name": "started", "peer": daemon.peer_id, "maddrs": list(await daemon.maddrs()), "p2pd": daemon.pid})
        await _check_clock(daemon, dht)
        if config.role == "dht":
            await _until(stop, daemon)
            return
        run = await _find_run(config, dht)
        _RunningPeer.check(run, config)
        peer = await _RunningPeer.create(config, run, daemon, dht, on_report)
        stack.push_async_callback(peer.close)
        await peer.serve(stop)


async def _until(stop: asyncio.Event, daemon: Daemon, *others: asyncio.Future[None]) -> None:
    """Return when `stop` is set. Raises what one of the others raises, or RuntimeError when p2pd ended by itself."""
    stopping = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(daemon.wait_ended())
    try:
        done, _ = await asyncio.wait({stopping, ended, *others}, return_when=asyncio.FIRST_COMPLETED)
        for future in others:
            if future in done:
                future.result()
        if ended in done and stopping not in done:
            raise RuntimeError("p2pd ended under the running peer")
    finally:
        stopping.cancel()
        ended.cancel()


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
        await asyncio.sleep(0.5)


class _RunningPeer:
    """The parts of a peer that has found its run, connected; made by `create`."""

    def __init__(self, config: PeerConfig, run: RunRecord, dht: Dht, on_report: OnReport) -> None:
        self.config, self.run, self.dht, self.on_report = config, run, dht, on_report
        self.stage = DATA_STAGE
        self.shard = -1
        self.sequence = 0
        self.probes = LinkProbes(time.monotonic)
        self._publish_due = asyncio.Event()
        self._publish_due.set()
        self._own: StageRecord | None = None

    @staticmethod
    def check(run: RunRecord, config: PeerConfig) -> None:
        """Raises RunMismatch that names the field."""
        if config.stage is not None and not 1 <= config.stage <= run.stages:
            raise RunMismatch(f"run {run.run_id}: stage: this run has stages 1 to {run.stages}, not {config.stage}")
        if config.shard is not None and not 0 <= config.shard < run.data_peers:
            raise RunMismatch(f"run {run.run_id}: shard: this run has shards 0 to {run.data_peers - 1}, not {config.shard}")

    @classmethod
    async def create(
        cls, config: PeerConfig, run: RunRecord, daemon: Daemon, dht: Dht, on_report: OnReport
    ) -> _RunningPeer:
        """Choose the stage, make the weights, connect everything, and answer from now on."""
        self = cls(config, run, dht, on_report)
        self.daemon = daemon
        view = await self._read_view()
        self._choose(view)
        self.compute = await asyncio.to_thread(_make_compute, config, run, self.stage, self.shard)
        self.rpc = Rpc(daemon, run.run_id)
        self.averager = Averager(self.rpc)
        machine = self._make_machine()
        self.log = EventLog(config.event_log) if config.event_log else None
        parts = DriverParts(
            compute=self.compute,
            transport=self.rpc,
            average=self._average,
            publish=self._publish_due.set,
            on_report=self._report,
            probes=self.probes,
            log_event=self.log.write if self.log else None,
        )
        self.driver = Driver(machine, parts)
        await self.rpc.start(self.driver)
        return self

    async def serve(self, stop: asyncio.Event) -> None:
        """Take part until told to stop."""
        self.driver.feed(ev.Started(0))
        publishing = asyncio.ensure_future(self._keep_publishing())
        looking = asyncio.ensure_future(self._keep_looking())
        self._report(ev.Report("online", {"stage": self.stage, "shard": self.shard}), time.monotonic())
        try:
            await _until(stop, self.daemon, publishing, looking, self.driver.failure)
        finally:
            for task in (publishing, looking):
                task.cancel()
            await asyncio.gather(publishing, looking, return_exceptions=True)

    async def close(self) -> None:
        self.driver.stop()
        await self.rpc.stop()
        if self.log is not None:
            self.log.close()

    # ---- assembling

    def _choose(self, view: NetworkView) -> None:
        me = self.daemon.peer_id
        if self.config.role == "data":
            taken = {record.shard for peer, record in view.records.items() if peer != me}
            free = [shard for shard in range(self.run.data_peers) if shard not in taken]
            if self.config.shard is None and not free:
                raise RunMismatch(f"run {self.run.run_id}: data_peers: all {self.run.data_peers} shards are held already")
            self.shard = free[0] if self.config.shard is None else self.config.shard
            return
        if self.config.stage is not None:
            self.stage = Stage(self.config.stage)
            return
        choice = choose_stage(view, me)
        self.stage = choice.stage
        logger.info("stage %d: %s", choice.stage, choice.reason)

    def _make_machine(self) -> RelayPeer | DataPeer:
        run, me = self.run, self.daemon.peer_id
        router = make_router(run.router, default_config(run.router), run.seed, me)
        context = Context(me, self.stage, run.stages, router, exact=run.recovery == "exact")
        if self.config.role == "data":
            config = DataPeerConfig(run.microbatches_per_data_peer, run.data_peers, run.total_iterations)
            return DataPeer(context, config)
        return RelayPeer(context, 0 if router_kind(run.router).unbounded_queues else self.config.capacity)

    # ---- records

    async def _read_view(self) -> NetworkView:
        stages = [Stage(number) for number in range(self.run.stages + 1)]
        records = await self.dht.read_stages(self.run.run_id, stages)
        if self._own is not None:
            records = [*records, self._own]
        mine = [record for record in records if record.model_hash == self.run.model_hash]
        return NetworkView.of(mine, self.run.stages, self.run.activation_bytes)

    async def _keep_looking(self) -> None:
        while True:
            view = await self._read_view()
            if view != self.driver.machine.ctx.view:
                self.driver.view_changed(view)
            begun = getattr(self.driver.machine, "begun", True)
            await asyncio.sleep(VIEW_PERIOD_S if begun else 0.5)

    async def _keep_publishing(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECORD_PERIOD_S):
                    await self._publish_due.wait()
            self._publish_due.clear()
            self.sequence += 1
            around = Surroundings(
                run_id=self.run.run_id,
                model_hash=self.run.model_hash,
                links=self.probes.measurements(),
                line_bytes_per_s=self.probes.line_bytes_per_s,
                shard=self.shard,
            )
            self._own = stage_record(self.driver.machine, around, self.sequence)
            await self.dht.publish_stage(self._own)
            if self.stage == DATA_STAGE:
                await self.dht.publish_run(self.run)  # by every data peer, so that it outlives its first owner
            await asyncio.sleep(PUBLISH_SOON_S)

    # ---- averaging and reports

    async def _average(self, close: Close, gradient: dict[str, Any]) -> AverageResult:
        """The mean gradient of the group, weighted by microbatches."""
        names = sorted(gradient)
        group = AveragingGroup(
            group_id=f"{self.run.run_id}.{close.stage}.{close.iteration}.{close.attempt}",
            members=close.members,
            weights=tuple(float(len(share.microbatches)) for share in close.shares),
        )
        try:
            averaged = await self.averager.average(group, [gradient[name] for name in names], AVERAGE_BOUND_S)
        except AveragingFailed as error:
            raise AverageFailureError(error.reason, error.peer) from error
        tensors = dict(zip(names, averaged.tensors, strict=True))
        return AverageResult(tensors, averaged.digest, averaged.seconds)

    def _report(self, report: ev.Report, now: float) -> None:
        logger.debug("%s %s", report.name, report.fields)
        self.on_report({"name": report.name, **report.fields})


def _make_compute(config: PeerConfig, run: RunRecord, stage: Stage, shard: int) -> Compute:
    """The model part from the run's seed, its executor and optimizer, and a data peer's dataset. Raises InputError."""
    import torch

    from gwtf_p2p.training.data import open_data
    from gwtf_p2p.training.executor import DataExecutor, StageExecutor
    from gwtf_p2p.training.families import check_run
    from gwtf_p2p.training.model_split import PartSpec, build_data_part, build_stage_part
    from gwtf_p2p.training.optimizer import PartOptimizer

    if config.threads:
        torch.set_num_threads(config.threads)
    check_run(run)
    spec = PartSpec.of(run, stage)
    executor: StageExecutor | DataExecutor
    if stage == DATA_STAGE:
        executor = DataExecutor(build_data_part(spec), config.executor)
        source = open_data(run)[0]
    else:
        executor, source = StageExecutor(build_stage_part(spec), config.executor), None
    optimizer = PartOptimizer(executor.part.parameters, run.optimizer)
    return Compute(run, executor, optimizer, source, max(shard, 0))
