"""A peer that has found its run, from its place in it to the way out: it serves, drains, or moves to another stage."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from torch import Tensor

from gwtf_p2p.live.compute.all_reduce import AveragingFailed, AveragingGroup
from gwtf_p2p.live.compute.averages import AVERAGE_BOUND_S, AverageFailureError, AverageResult, average_of_copies
from gwtf_p2p.live.compute.stage_fit import watch_memory
from gwtf_p2p.live.emulation.faults import FaultTrigger
from gwtf_p2p.live.libp2p.audit_signing import verifier
from gwtf_p2p.live.libp2p.daemon import until
from gwtf_p2p.live.libp2p.receipt_signing import ReceiptSigning
from gwtf_p2p.live.lives.handover import LoadedModules
from gwtf_p2p.live.measure.evaluation import Evaluation
from gwtf_p2p.live.measure.metrics import Metrics
from gwtf_p2p.live.measure.permission import Permission
from gwtf_p2p.live.peer.assembly import (
    KeptWork,
    Prepared,
    check_model,
    choose_place,
    kept_work,
    peer_settings,
    prepare,
)
from gwtf_p2p.live.peer.config import NotKept, PeerConfig
from gwtf_p2p.live.peer.driver import Driver, DriverParts
from gwtf_p2p.live.peer.event_log import EventLog
from gwtf_p2p.live.peer.join import refuse_unless_admitted
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.live.peer.record_keeper import read_view
from gwtf_p2p.live.peer.reporting import Reporter, Reporting
from gwtf_p2p.live.peer.transport import Transport, connect_transport
from gwtf_p2p.live.peer.wiring import Parts, connect_parts
from gwtf_p2p.live.state.rebuilding import rebuilt
from gwtf_p2p.live.state.weights_first import fetch_weights_first
from gwtf_p2p.live.text.through_stages import Swarm, ThroughStages
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.peer.factory import compose
from gwtf_p2p.protocol.replay.log import Opening
from gwtf_p2p.protocol.stall.watch import StallWatch, Wanted
from gwtf_p2p.protocol.trust.state_access import StateAccess
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.protocol.wire.records import PathType, RunRecord
from gwtf_p2p.protocol.wire.signed import Order
from gwtf_p2p.training.compute.values import Gradient
from gwtf_p2p.version import VERSION

logger = logging.getLogger(__name__)


async def start_running(
    config: PeerConfig,
    run: RunRecord,
    network: Network,
    reporting: Reporting,
    preparing: asyncio.Future[Prepared] | None = None,
) -> RunningPeer:
    """Take a place, make the weights (or take up a checkpoint), connect everything, and answer from now on. `preparing`: the
    place is the one of this peer's life before."""
    assert network.orders is not None, "a peer runs when it has found its run"
    times, left, view = reporting.times, None, None
    if preparing is None:
        await asyncio.to_thread(check_model, run)  # first: its model may be one that this installation does not know
        view = network.orders.entry.visible(await read_view(network.dht, run))
        chosen = partial(choose_place, run=run, view=view, me=network.daemon.peer_id)
        prepared = await asyncio.to_thread(prepare, config, run, chosen, reporting.on_report)
    else:
        prepared, left = await preparing, kept_work(config, run)
    transport = await connect_transport(prepared.config, network, run, prepared.compute)
    times.mark("weights")
    peer = RunningPeer(prepared, run, transport, reporting)
    await peer.resume()
    times.mark("checkpoint")
    measured = await peer.measure(left.measured if left is not None else None)
    times.mark("measured")
    if config.handover is not None:
        config.handover.leave(KeptWork(run.run_id, run.model_hash, prepared.place, prepared.memory, measured))
    if view is not None:
        network.saw(view)
    await peer.rpc.start(peer.driver)
    return peer


def _set_doors(parts: Parts, machine: PeerMachine, transport: Transport) -> None:
    """Who gets in, and who gets what, is the machine's to say."""
    parts.audits.why_not = machine.audits.why_not
    parts.forward_only.may_ask = machine.gate.may_ask_forward_only
    access = StateAccess(machine.gate)
    parts.donor.may_have, parts.records.on_read = access.asked, access.read
    transport.real_rpc.admits = machine.gate.admits
    transport.real_rpc.know(machine.gate.knows)


class RunningPeer:
    """Made by `start_running`; `serve` runs it, `close` ends it."""

    def __init__(self, prepared: Prepared, run: RunRecord, transport: Transport, reporting: Reporting) -> None:
        self.config = config = prepared.config
        self.run, self.place, self.compute = run, prepared.place, prepared.compute
        self.metrics = Metrics(config.metrics, run)
        reporting = Reporting(self.metrics.hearing(reporting.on_report), reporting.times)
        network = transport.network
        self.transport, self.daemon, self.network, self.rpc = transport, network.daemon, network, transport.rpc
        if network.paths is not None:
            network.paths.attach(transport.real_rpc, self._path_changed)
        self.parts = connect_parts(prepared, run, transport, reporting.on_report)
        self.averager, self.checkpoints, self.records = self.parts.averager, self.parts.checkpoints, self.parts.records
        self.state_download, self.replication = self.parts.state_download, self.parts.replication
        self._residual: Gradient | None = None
        self.event_log = EventLog(config.event_log) if config.event_log else None
        self._started = ev.Started()
        self._drained = asyncio.Event()
        self._ended = asyncio.Event()
        self._moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moves_to: Stage | None = None
        self.pauses = False
        self.settings = peer_settings(config, run, self.place, self.daemon.peer_id)
        machine = compose(self.settings, verify=self.parts.signing.verify, signed_by=verifier(run.run_id))
        _set_doors(self.parts, machine, transport)
        self.reporter = Reporter(self.parts, machine, reporting)
        swarm = Swarm(lambda: machine.ctx.view, lambda: machine.ctx.liveness.excluded)
        stages = ThroughStages(self.compute, self.parts.forward_only, swarm)
        tell = (reporting.on_report, lambda version, loss: self.driver.feed(ev.Evaluated(version, loss)))
        self.evaluation = Evaluation(run, stages, self.compute.evaluated_on, *tell)
        parts = DriverParts(
            compute=self.compute,
            before=self.evaluation.before,
            transport=self.rpc,
            average=self._average,
            download=self._download,
            publish=self.reporter.record_changed,
            on_move=self._move,
            on_end=self._ended.set,
            save=self._save,
            on_report=self._report,
            probes=self.parts.probes,
            signing=ReceiptSigning(network.identity, run.run_id),
            log_event=self._on_event,
            sign=self.parts.signing.sign,
            audits=self.parts.audits,
            fault=FaultTrigger(config.faults, self.reporter.fault) if config.faults else None,
        )
        self.driver: Driver = Driver(machine, parts)
        self.records.resent_bytes = self.reporter.resent_bytes = lambda: self.driver.sender.resent_bytes

    async def resume(self) -> None:
        """Take up the newest own checkpoint, or learn what others keep of this stage."""
        checkpoints = self.checkpoints
        if not checkpoints.kept:
            await self.records.announce(self.daemon.peer_id)  # what others keep is told to those alone that have a record
            view = self.records.orders.entry.visible(await read_view(self.network.dht, self.run))
            epoch = await self.replication.adopt(view)
        else:
            epoch, newest = checkpoints.epoch, checkpoints.kept[-1]
            await self.compute.load(await asyncio.to_thread(checkpoints.read, self.place.stage, newest))
            logger.info("resumed stage %d from the checkpoint after %d iterations", self.place.stage, newest)
        self._started = ev.Started(
            weights_version=checkpoints.kept[-1] if checkpoints.kept else 0,
            incarnation=int(time.time()),
            epoch=epoch,
            kept=self.replication.kept,
            evaluations=checkpoints.evaluations,
        )

    async def measure(self, before: Mapping[Work, float] | None = None) -> Mapping[Work, float]:
        """Time this peer's work before anybody plans on it: what is published is measured, never a guess. `before`: as it was
        measured when this process was another one. Returns seconds of one microbatch by kind of work."""
        measured = await self.compute.measure() if before is None else before
        self.driver.machine.measured(measured)
        if self.event_log is not None:
            self.event_log.begin(Opening(self.settings, measured, VERSION, self.run, self.place.shard))
        return measured

    async def serve(self, stop: asyncio.Event, permission: Permission) -> Stage | None:
        """Take part until told to stop, or not allowed to go on (`pauses`), or until this peer is to begin anew in another
        stage, which is returned. Raises NotKept at the end of a run whose last weights this peer could not write."""
        machine = self.driver.machine
        self.state_download.on_chunk = self.reporter.download
        self.checkpoints.on_kept = self.replication.on_remote = self._tell_kept
        self.transport.started(self.driver)
        self.parts.prober.quota_bytes = permission.left_bytes
        self.driver.feed(self._started)
        self._obey(tuple(signed.order for signed in self.records.orders.newest))
        if self.config.handover is not None:
            self.config.handover.leave(LoadedModules.here())
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                self.records.keep_publishing(machine),
                self.records.keep_looking(machine, self._view_changed),
                self.records.keep_obeying(self._obey),
                self.records.exchange.run(),
                self.replication.run(lambda: machine.ctx.view, lambda: machine.membership.serves),
                self.parts.prober.run(),
                self.parts.link_probe.run(),
                self.reporter.keep_telling(self.config.figures_every_s),
                watch_memory(self.config.memory_bytes if self.config.executor.device == "cpu" else 0),
                self.reporter.watch_stalls(self._stall_watch(), self.config.on_alert),
            )
        ]
        ended, forbidden = (asyncio.ensure_future(each) for each in (self._has_ended(), permission.forbidden()))
        tasks += [ended, forbidden]
        try:
            await until(stop, self.daemon, *tasks, self.driver.failure, self._moved)
            self.pauses = forbidden.done() and not stop.is_set() and not ended.done()
            if self.pauses:
                self.reporter.tell({"name": "pausing", "text": (await permission.look()).text})
            if not self._moved.done() and not ended.done():
                await self._drain(*(task for task in tasks if task is not forbidden or not task.done()))
            if ended.done() and (why := machine.ending.unkept):
                raise NotKept(f"the run is complete, and this peer's last weights are not kept: {why}")
            return None if stop.is_set() or ended.done() else self._moves_to
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _save(self, asked: ef.Checkpoint, settled: Callable[[int, str], object]) -> None:
        """Write them; the last weights are evaluated too, while the stage peers are still here."""
        progress = self.driver.machine.participant.progress
        if progress.is_over(asked.version):
            self.evaluation.begins(asked.version)
            settled = self.checkpoints.noting(lambda: progress.evaluating.known, settled)
        self.checkpoints.write(asked, lambda of, reason: self.evaluation.after(partial(settled, of, reason)))

    def _stall_watch(self) -> StallWatch:
        return StallWatch(Wanted(self.run.data_peers, self.run.peers_per_stage), self.config.alert_after_s)

    async def _has_ended(self) -> None:
        await self._ended.wait()

    async def close(self) -> None:
        await self.checkpoints.close()  # first: a checkpoint that is due needs the compute thread once more
        self.driver.stop()
        self.parts.donor.stop()
        self.parts.forward_only.stop()
        self.parts.audits.stop()
        self.evaluation.stop()
        await asyncio.to_thread(self.metrics.close)
        await self.rpc.stop()
        if self.network.paths is not None:
            await self.network.paths.stop()
        await self.transport.close()
        if self.event_log is not None:
            self.event_log.close()

    async def _drain(self, *tasks: asyncio.Future[None]) -> None:
        """Finish what is held and let the others know, unless told to leave at once."""
        if self.config.drain_s <= 0:
            return
        self.driver.feed(ev.DrainRequested())
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_s):
                await until(self._drained, self.daemon, *tasks, self.driver.failure)

    def _move(self, stage: Stage) -> None:
        self._moves_to = stage
        self._drained.set()
        if not self._moved.done():
            self._moved.set_result(None)

    async def _average(self, prepare: Prepare, gradient: Gradient) -> AverageResult:
        """The mean gradient of the group, weighted by microbatches. Raises AverageFailureError.

        What rounding takes from this peer's gradients goes into its next average, once the step of this one is taken: an
        attempt that fails, or that others do not take, changes nothing.
        """
        if not gradient.shapes:
            return AverageResult(gradient, "nothing is trained here", 0.0)
        group = AveragingGroup(
            group_id=f"{self.run.run_id}.{prepare.key}",
            members=prepare.participants,
            weights=tuple(float(weight) for weight in prepare.weights),
            left_out=tuple(peer for peer in prepare.left_out if peer in prepare.participants),
            all_with_all=prepare.all_with_all,
        )
        try:
            if self.run.sync.is_on:
                me = self.daemon.peer_id
                return await average_of_copies(self.averager, self.compute, group, me, gradient, prepare.iteration)
            averaged = await self.averager.average(group, gradient, AVERAGE_BOUND_S, self._residual)
        except AveragingFailed as error:
            raise AverageFailureError(error.reason, error.peer, refused=error.refused) from error
        return AverageResult(averaged.gradient, averaged.digest, averaged.seconds, lambda: self._owe(averaged.residual))

    def _owe(self, residual: Gradient | None) -> None:
        self._residual = residual

    async def _download(self, download: ef.Download, weights_are_here: Callable[[], object]) -> None:
        """Own weights, checkpoint or replica where they are the right ones, else from the donors, or made of the neighbours'.

        Raises StateUnavailable, RemoteProtocolError.
        """
        version, compute, checkpoints = download.version, self.compute, self.checkpoints
        self._owe(None)  # it belongs to gradients of weights that are replaced
        if download.own and await compute.in_thread(lambda: compute.optimizer.steps) == version:
            await compute.reset()
        elif download.weights_first:
            await fetch_weights_first(self.state_download, (version, download.donors), compute, weights_are_here)
        else:
            await compute.load(await self._state_for(download))
        if download.rebuild is not None and self.place.stage == DATA_STAGE:
            await compute.note_rebuilt(download.rebuild.stages, version)
        trusted = download.own or download.epoch == checkpoints.epoch
        try:
            await asyncio.to_thread(checkpoints.go_on_from, version, download.epoch, trusted)
        except InputError as error:
            logger.error("%s; training goes on", error)
        self._tell_kept()

    async def _state_for(self, download: ef.Download) -> Mapping[str, Tensor]:
        version, rebuild = download.version, download.rebuild
        if rebuild is not None and (rebuild.below or rebuild.above):
            like = await self.compute.read()
            like.end()  # of its tensors only names and shapes are asked for
            return await rebuilt(like.state, (self.place.stage, version), rebuild, self.state_download)
        if not download.own:
            return await self.state_download.fetch(version, download.donors)
        if version in self.checkpoints.kept:
            try:
                return await asyncio.to_thread(self.checkpoints.read, self.place.stage, version)
            except InputError as error:
                logger.warning("%s", error)
        return await self.replication.fetch(version)

    # ---- what it hears of the network

    def _obey(self, orders: tuple[Order, ...]) -> None:
        """The owner or an admin has said who may take part. Raises RunMismatch when this peer may not."""
        if orders:
            self.driver.feed(ev.Ordered(orders))
        refuse_unless_admitted(self.records.orders, self.daemon.peer_id)

    def _view_changed(self, view: NetworkView) -> None:
        self.network.saw(view)
        self.reporter.look_at_releases(view)
        self.parts.prober.view = view
        self.driver.view_changed(view)

    def _path_changed(self, peer: PeerId, path: PathType) -> None:
        self.parts.probes.path_changed(peer, path)
        self.parts.link_probe.path_changed(peer, path, self.network.paths.circuit_bytes(peer) if self.network.paths else 0)
        self.reporter.path(peer, path)

    def _on_event(self, event: ev.Event, now: float, effects: Sequence[ef.Effect], raised: str) -> None:
        if self.event_log is not None:
            self.event_log.write(event, now, effects, raised)
        self.reporter.heard(event)

    def _tell_kept(self) -> None:
        self.driver.feed(ev.Kept(self.replication.kept))

    def _report(self, report: ef.Report, now: float) -> None:
        if report.name == "iteration_begins":
            self.evaluation.begins(self.driver.machine.participant.version)
        elif report.name == "drained":
            self._drained.set()
        self.reporter.report(report, now)
