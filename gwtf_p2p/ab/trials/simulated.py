"""One arm of a comparison in the simulator."""

from __future__ import annotations

import time
from collections import Counter

from gwtf_p2p.ab.trials.gantt import Row, write_rows
from gwtf_p2p.ab.trials.result import RunResult
from gwtf_p2p.ab.trials.scaling import scaled
from gwtf_p2p.ab.trials.task import RunTask
from gwtf_p2p.live.emulation.timed_router import timed, timed_call
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.measure.trace import Span, Trace
from gwtf_p2p.simulation.run import Simulation


class Recorder(Trace):
    """Hears what the report shows: bytes by path, routes, recoveries."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.paths: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.routes: Counter[str] = Counter()
        self.recovery_s: list[float] = []
        self.losses: dict[int, list[float]] = {}

    def event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        """No digest: nobody asks for it here."""

    def span(self, span: Span) -> None:
        if span.to is not None:
            self.paths[f"{span.peer} > {span.to}"] += span.size
            self.kinds[span.what] += span.size
        about = "/".join(span.about.split("/")[1:]) if "/" in span.about else span.about
        self.rows.append(Row(span.peer, span.what, about, span.began, span.ended, span.to or ""))

    def report(self, peer: PeerId, report: ef.Report, now: float) -> None:
        if report.name == "recovered":
            seconds = report.fields["seconds"]
            assert isinstance(seconds, float | int)
            self.recovery_s.append(seconds)
        elif report.name == "microbatch_done":
            route = report.fields["route"]
            assert isinstance(route, list)
            self.routes[" > ".join(map(str, route))] += 1


def run_simulated(task: RunTask) -> RunResult:
    """Raises StuckError when it does not come to an end: our bug."""
    began, scale = time.monotonic(), task.time_scale
    recorder = Recorder()
    simulation = Simulation(scaled(task.scenario, scale), task.arm, task.seed, recorder)
    planning_s = 0.0

    def add(seconds: float) -> None:
        nonlocal planning_s
        planning_s += seconds

    def around(router: Router) -> Router:
        return timed(router, time.thread_time, add)

    simulation.swarm.put_around_routers(around)
    simulation.world.make_plan = timed_call(simulation.world.make_plan, time.thread_time, add)
    outcome = simulation.run()
    ends = simulation.metrics.ends
    if len(ends) > 1:
        write_rows(task.gantt_path, recorder.rows, (ends[-2], ends[-1]), scale)
    averaged, fetched = simulation.world.rounds.bytes_sent, simulation.world.weights.bytes_sent
    charged, probed = simulation.world.links.bytes_sent + averaged, simulation.idle_probes.bytes_sent
    return RunResult(
        **task.head(),
        iteration_s=tuple(seconds / scale for seconds in outcome.iteration_seconds),
        bound_iteration_s=outcome.bound_iteration_seconds / scale,
        bound_microbatches_per_s=outcome.bound_microbatches_per_second * scale,
        microbatches_lost=outcome.microbatches_lost,
        double_counted=outcome.double_counted,
        wasted_compute_fraction=outcome.wasted_compute_fraction,
        recoveries=dict(outcome.recoveries),
        recovery_s=tuple(seconds / scale for seconds in recorder.recovery_s),
        **simulation.churn.counts(),
        moves=simulation.rebalancing.moves,
        messages=simulation.world.messages.count,
        bytes_by_kind={**recorder.kinds, "average": averaged, "state_chunk": fetched, "probe": probed, "all": charged},
        bytes_by_path=dict(recorder.paths),
        routes=dict(recorder.routes),
        planning_s=planning_s,
        wall_s=time.monotonic() - began,
    )
