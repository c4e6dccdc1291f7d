"""A peer that has found its run: its parts connected, from ONLINE to the way out."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from torch import Tensor

from gwtf_p2p.live.assembly import Place, choose_place, make_compute, make_machine
from gwtf_p2p.live.averaging import Averager, AveragingFailed, AveragingGroup
from gwtf_p2p.live.checkpoints import Checkpoints
from gwtf_p2p.live.compute import Compute
from gwtf_p2p.live.dht import Dht
from gwtf_p2p.live.driver import AverageFailureError, AverageResult, Driver, DriverParts
from gwtf_p2p.live.event_log import EventLog
from gwtf_p2p.live.faults import FaultTrigger
from gwtf_p2p.live.p2p import Daemon
from gwtf_p2p.live.peer_config import OnReport, PeerConfig
from gwtf_p2p.live.probes import LinkProbes
from gwtf_p2p.live.record_keeper import RecordKeeper, read_view
from gwtf_p2p.live.rpc import Rpc
from gwtf_p2p.live.state_transfer import StateDonor, StateDownload, StateUnavailable
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.messages import Close
from gwtf_p2p.protocol.records import RunRecord

logger = logging.getLogger(__name__)

AVERAGE_BOUND_S = 600.0
"""Only a bound on a leaked attempt: the leader's deadlines, from measured times, end an attempt long before."""


async def until(stop: asyncio.Event, daemon: Daemon, *others: asyncio.Future[None]) -> None:
    """Return when `stop` is set. Raises what one of the others raises, or RuntimeError when p2pd ended by itself."""
    stopping = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(daemon.wait_ended())
    waiting: set[asyncio.Future[Any]] = {stopping, ended, *others}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in others:
            if future in done:
                future.result()
        if ended in done and stopping not in done:
            raise RuntimeError("p2pd ended under the running peer")
    finally:
        stopping.cancel()
        ended.cancel()


async def start_running(config: PeerConfig, run: RunRecord, daemon: Daemon, dht: Dht, on_report: OnReport) -> RunningPeer:
    """Take a place, make the weights (or take up a checkpoint), connect everything, and answer from now on."""
    place = choose_place(config, run, await read_view(dht, run), daemon.peer_id)
    compute = await asyncio.to_thread(make_compute, config, run, place)
    peer = RunningPeer(config, run, (place, compute), (daemon, dht), on_report)
    await peer.resume()
    await peer.rpc.start(peer.driver)
    return peer


class RunningPeer:
    """Made by `start_running`; `serve` runs it, `close` ends it."""

    def __init__(
        self,
        config: PeerConfig,
        run: RunRecord,
        part: tuple[Place, Compute],
        network: tuple[Daemon, Dht],
        on_report: OnReport,
    ) -> None:
        self.config, self.run, self.on_report = config, run, on_report
        self.place, self.compute = part
        self.daemon, dht = network
        self.rpc = Rpc(self.daemon, run.run_id)
        self.averager = Averager(self.rpc)
        self.donor = StateDonor(self.rpc, self.compute.snapshot, config.upload_bytes_per_s)
        self.state_download = StateDownload(self.rpc)
        self.checkpoints = Checkpoints(config.checkpoints, run, self.place.stage, self.compute)
        self.probes = LinkProbes(time.monotonic)
        self.records = RecordKeeper(dht, run, self.place, self.probes)
        self.event_log = EventLog(config.event_log) if config.event_log else None
        self._resumed_at = 0
        self._drained = asyncio.Event()
        parts = DriverParts(
            compute=self.compute,
            transport=self.rpc,
            average=self._average,
            download=self._download,
            publish=self.records.publish_soon,
            on_report=self._report,
            probes=self.probes,
            log_event=self.event_log.write if self.event_log else None,
            fault=FaultTrigger(config.fault, on_report) if config.fault else None,
        )
        self.driver = Driver(make_machine(config, run, self.place, self.daemon.peer_id), parts)

    async def resume(self) -> None:
        """Take up the newest own checkpoint. Raises InputError if it is of another model."""
        newest = await asyncio.to_thread(self.checkpoints.newest)
        if newest is not None:
            self._resumed_at, state = newest
            await self.compute.load(state)
            logger.info("resumed stage %d from the checkpoint after %d iterations", self.place.stage, self._resumed_at)

    async def serve(self, stop: asyncio.Event) -> None:
        """Take part until told to stop."""
        machine = self.driver.machine
        self.driver.feed(ev.Started(self._resumed_at, incarnation=int(time.time())))
        publishing = asyncio.ensure_future(self.records.keep_publishing(machine))
        looking = asyncio.ensure_future(self.records.keep_looking(machine, self.driver.view_changed))
        self.on_report({"name": "online", "stage": self.place.stage, "shard": self.place.shard, "version": self._resumed_at})
        try:
            await until(stop, self.daemon, publishing, looking, self.driver.failure)
            await self._drain(publishing, looking)
        finally:
            for task in (publishing, looking):
                task.cancel()
            await asyncio.gather(publishing, looking, return_exceptions=True)

    async def close(self) -> None:
        await self.checkpoints.close()  # first: a checkpoint that is due needs the compute thread once more
        self.driver.stop()
        self.donor.stop()
        await self.rpc.stop()
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

    async def _average(self, close: Close, gradient: dict[str, Tensor]) -> AverageResult:
        """The mean gradient of the group, weighted by microbatches. Raises AverageFailureError."""
        names = sorted(gradient)
        group = AveragingGroup(
            group_id=f"{self.run.run_id}.{close.key}",
            members=close.members,
            weights=tuple(float(len(share.microbatches)) for share in close.shares),
        )
        try:
            averaged = await self.averager.average(group, [gradient[name] for name in names], AVERAGE_BOUND_S)
        except AveragingFailed as error:
            raise AverageFailureError(error.reason, error.peer) from error
        return AverageResult(dict(zip(names, averaged.tensors, strict=True)), averaged.digest, averaged.seconds)

    async def _download(self, version: int, donors: tuple[PeerId, ...]) -> dict[str, Tensor]:
        """The state of this version from other peers, else from this machine's disk. Raises StateUnavailable."""
        if donors:
            return await self.state_download.fetch(version, donors)
        try:
            return await asyncio.to_thread(self.checkpoints.read, version)
        except InputError as error:
            raise StateUnavailable(str(error)) from error

    def _report(self, report: ev.Report, now: float) -> None:
        if report.name == "stepped":
            self.checkpoints.stepped(self.driver.machine.member.version)
        elif report.name == "drained":
            self._drained.set()
        logger.debug("%s %s", report.name, report.fields)
        fields: dict[str, Any] = {"name": report.name, **report.fields}
        self.on_report(fields)
