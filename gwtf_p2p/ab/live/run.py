"""One arm of a comparison as a live swarm: real processes, libp2p, computing and averaging; links and devices as drawn."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gwtf_p2p.ab.live.churn import Actors, LiveRebalancing, LiveStagePeers, stages_of
from gwtf_p2p.ab.live.cpu import CpuBooks
from gwtf_p2p.ab.live.metrics import LiveMetrics
from gwtf_p2p.ab.live.plan import LivePlan
from gwtf_p2p.ab.live.wire import Wire
from gwtf_p2p.ab.trials.gantt import Row, write_rows
from gwtf_p2p.ab.trials.result import TOLD_BY_PEERS, RunResult
from gwtf_p2p.ab.trials.task import RunTask
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.protocol.ids import DATA_STAGE, Stage
from gwtf_p2p.simulation.swarm.churn import Churn

POLL_S = 0.02
START_DEADLINE_S = 120.0
STALL_S = 120.0
LAST_WORDS_S = 3.0
"""How long stage peers may take to report their last step after the data peers have reported theirs."""

NO_PROGRESS = ("figures", "stall")
"""What peers tell all the time, and what they tell when nothing happens."""

BOOTSTRAP = "bootstrap"


class RunFailed(RuntimeError):
    """A live run came to no end; the reason, and the end of the log that tells why."""


def run_live(task: RunTask) -> RunResult:
    """Raises RunFailed, and InputError for what cannot be run live."""
    with tempfile.TemporaryDirectory(prefix="gwtf-ab-") as folder:
        return _LiveRun(LivePlan.of(task, Path(folder)), Path(folder)).run()


class _LiveRun:
    """From the first process to the result."""

    def __init__(self, plan: LivePlan, folder: Path) -> None:
        self.plan, self.task, self.folder = plan, plan.task, folder
        record, drawn = plan.record, plan.swarm.drawn
        expected = record.data_peers * record.microbatches_per_data_peer
        self.metrics = LiveMetrics(RunState(record.stages, expected, self.task.tokens_per_microbatch))
        self.wire = Wire(folder / "wire.sock", plan.link, plan.lines)
        self.processes = LocalSwarm(folder)
        self.stage_of = stages_of(drawn.values())
        self.online: set[str] = set()
        self.complete: set[str] = set()
        self.version: Counter[str] = Counter()
        self.cpu = CpuBooks()
        actors = Actors(self._kill, self._start, self._move)
        scenario = plan.swarm.scenario
        self.stage_peers = LiveStagePeers(self.stage_of, self.online, actors)
        self.churn = Churn(scenario.churn, self.task.seed, plan.bound.iteration_s, self.stage_peers)
        period_s = self.task.arm.config.rebalance_period_s * self.task.time_scale
        self.rebalancing = LiveRebalancing(period_s, scenario.model.stages, self.stage_of, self.online, actors)
        self.maddr = ""
        self.begun = False
        self._heard_at = time.monotonic()

    def run(self) -> RunResult:
        began = time.monotonic()
        try:
            self.wire.start()
            self._assemble()
            self._watch()
            self.cpu.end(self.processes)
        finally:
            self.processes.stop()
            self.wire.stop()
        return self._result(time.monotonic() - began)

    # ---- processes

    def _assemble(self) -> None:
        self.processes.start(BOOTSTRAP, self.plan.bootstrap())
        started = self.processes.wait_for(BOOTSTRAP, "started", START_DEADLINE_S)
        if started is None:
            raise RunFailed(f"the bootstrap peer did not start: {self._log(BOOTSTRAP)}")
        self.maddr = started["maddrs"][0]
        for name in self.stage_of:
            self._start(name)

    def _start(self, name: str) -> None:
        self.processes.start(name, self.plan.config(name, self.stage_of[name], self.wire.socket, self.maddr))

    def _kill(self, name: str) -> None:
        self.processes.kill(name)
        self.wire.killed(self.plan.ids[name])

    def _move(self, name: str, stage: Stage) -> None:
        """Let it finish and end; it starts again when it is gone."""
        self.processes.leave(name)

    def _log(self, name: str) -> str:
        try:
            return " | ".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-6:])
        except OSError:
            return "no log"

    # ---- watching

    def _watch(self) -> None:
        iterations = self.plan.swarm.scenario.iterations
        done_at: float | None = None
        while True:
            for name, report in self.processes.poll(POLL_S):
                self._hear(name, report, time.monotonic())
            now = time.monotonic()
            self.churn.act(now)
            self.rebalancing.act(now, self._take_queued)
            if len(self.complete) == self.plan.record.data_peers:
                done_at = done_at or now
                if now - done_at > LAST_WORDS_S or all(self.version[name] >= iterations for name in self.online):
                    return
            if now - self._heard_at > STALL_S:
                raise RunFailed(f"nothing happened for {STALL_S:.0f} s after {self.metrics.iterations_done} iterations")

    def _hear(self, name: str, report: Mapping[str, Any], now: float) -> None:
        if report["name"] not in NO_PROGRESS:
            self._heard_at = now
        match report["name"]:
            case "exited" | "failed":
                self._ended(name, report)
                return
            case "started":
                self.cpu.know(name, report["p2pd"])
            case "online":
                # One that comes late has no weights yet: it serves when it has caught up.
                if not self.begun:
                    self.online.add(name)
            case "caught_up":
                self.online.add(name)
            case "out_of_step" | "draining":
                self.online.discard(name)
            case "iteration_begins":
                if not self.begun:
                    self.begun = True
                    self.cpu.begin(self.processes)
                self.churn.iteration_begins(int(report["iteration"]), now)
            case "stepped":
                self.version[name] = int(report["iteration"]) + 1
            case "run_complete":
                if report["stage"] == DATA_STAGE:
                    self.complete.add(name)
            case _:
                pass
        self.metrics.hear(name, self.stage_of.get(name, DATA_STAGE), report, now)

    def _ended(self, name: str, report: Mapping[str, Any]) -> None:
        if report["name"] == "exited" and self.rebalancing.left(name):
            self._start(name)
        elif name not in self.stage_peers.down and name not in self.rebalancing.leaving:
            raise RunFailed(f"{name} ended: {report.get('error', report.get('code'))}: {self._log(name)}")

    def _take_queued(self) -> dict[str, list[int]]:
        taken = {}
        for name, peer in self.plan.ids.items():
            usage = self.wire.usage[peer]
            taken[name], usage.queued = usage.queued, []
        return taken

    # ---- what came of it

    def _result(self, wall_s: float) -> RunResult:
        task, plan, metrics, scale = self.task, self.plan, self.metrics, self.task.time_scale
        names, usage = plan.names, self.wire.usage.values()
        accounting, told = metrics.state.accounting(), metrics.state.traffic.totals
        device_s = sum(u.device_s for u in usage)
        iteration_s = metrics.iteration_s()
        self._gantt(names)
        kinds: Counter[str] = Counter()
        for (_, _, kind), size in self.wire.bytes_by_path.items():
            kinds[kind] += size
        paths: Counter[str] = Counter()
        for (sender, receiver, _), size in self.wire.bytes_by_path.items():
            paths[f"{names[sender]} > {names[receiver]}"] += size
        return RunResult(
            **task.head(),
            iteration_s=tuple(seconds / scale for seconds in iteration_s),
            bound_iteration_s=plan.bound.iteration_s / scale,
            bound_microbatches_per_s=plan.bound.microbatches_per_second * scale,
            microbatches_lost=accounting["lost"],
            double_counted=accounting["double_counted"],
            wasted_compute_fraction=max(0.0, 1 - metrics.useful_s / device_s) if device_s else 0.0,
            recoveries=dict(metrics.recoveries),
            recovery_s=tuple(seconds / scale for seconds in metrics.recovery_s),
            **self.churn.counts(),
            moves=self.rebalancing.moves,
            messages=sum(u.messages for u in usage),
            bytes_by_kind={**kinds, "all": sum(kinds.values()), **{kind: told[kind] for kind in TOLD_BY_PEERS}},
            bytes_by_path=dict(paths),
            routes=dict(metrics.routes),
            planning_s=sum(u.planning_s for u in usage),
            wall_s=wall_s,
            losses=metrics.mean_losses(),
            late=sum(u.late for u in usage),
            computations=sum(u.computations for u in usage),
            cpu=self.cpu.told(sum(u.cpu_s for u in usage), sum(u.real_s for u in usage), device_s),
            notes=(f"load average {os.getloadavg()[0]:.1f}",),
        )

    def _gantt(self, names: Mapping[Any, str]) -> None:
        ends = [self.metrics.ends[i] for i in sorted(self.metrics.ends)]
        if len(ends) > 1:
            rows = [Row(names[s.peer], s.what, s.about, s.began, s.ended, names[s.to] if s.to else "") for s in self.wire.spans]
            write_rows(self.task.gantt_path, rows, (ends[-2], ends[-1]), self.task.time_scale)
