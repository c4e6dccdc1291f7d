"""The planned iteration as bars: who is to compute what, when, as the planner's own model of the pipeline forecasts it.

It is a forecast and is told as one. Records carry no time of any single computation, so what has really happened inside an
iteration cannot be drawn from them. What they do carry stands beside the forecast: how long the last iterations took, and how
long a microbatch took over each route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gwtf_p2p.monitor.ledger import called
from gwtf_p2p.monitor.routes import FlowLine
from gwtf_p2p.monitor.swarm_state import SHOWN, SwarmState
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.model import WINDOW, Path, Pipeline, Run
from gwtf_p2p.protocol.schedule.published import published_flows
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.network_view import NetworkView

MOST_MICROBATCHES = 64
"""An iteration of more is not legible as bars."""

MISSING = "Records carry no times of single computations: the bars are the plan's forecast, not a measurement."

WHOLE = "whole iteration, its average and optimizer step too"
MOST_ROUTES = 24


class _BarRun(Run):
    """A forecast that writes down every computation: (peer, microbatch, position on the round trip, begin, end), in us."""

    def __init__(self, pipeline: Pipeline, paths: Sequence[Path]) -> None:
        super().__init__(pipeline, paths, WINDOW)
        self.bars: list[tuple[int, int, int, float, float]] = []

    def _compute(self, m: int, position: int, peer: int, now: float) -> None:
        before = self.pipeline.before_us, self.pipeline.after_us, self.pipeline.loss_us
        lasts_us = before[0][peer] if position < self.turn else before[1][peer] if position > self.turn else before[2][peer]
        self.bars.append((peer, m, position, now, now + lasts_us))
        super()._compute(m, position, peer, now)


def planned_iteration(state: SwarmState, lines: Sequence[FlowLine]) -> dict[str, Any]:
    """`rows` of bars by peer, empty with a `reason` when there is nothing to draw; `measured`: what the data peers of `lines`
    and of the last iterations measured, beside what was planned for it."""
    planned = _planned(state)
    return {**planned, "measured": _measured(state, lines, planned["seconds"] or None)}


def _measured(state: SwarmState, lines: Sequence[FlowLine], planned_s: float | None) -> list[dict[str, Any]]:
    """Medians, seconds; the iteration first, then the routes that take longest. Nothing of what is not measured."""
    whole = [(WHOLE, planned_s, state.pace_s)] if state.pace_s else []
    routes = sorted((line for line in lines if line.measured_s), key=lambda line: (-(line.measured_s or 0.0), line.route))
    named = [
        (" → ".join([line.data_peer[-SHOWN:], *line.route.split(">")]), line.predicted_s, line.measured_s or 0.0)
        for line in routes[:MOST_ROUTES]
    ]
    return [
        {"what": what, "planned_s": None if plan is None else round(plan, 4), "measured_s": round(seconds, 4)}
        for what, plan, seconds in [*whole, *named]
    ]


def _planned(state: SwarmState) -> dict[str, Any]:
    run = state.run
    view = NetworkView.of(state.records.values(), run.stages, run.activation_bytes, end_bytes=run.end_bytes)
    flows = [flow for flow in published_flows(view) if all(flow[1])]
    if not flows:
        return _nothing(f"No plan is published (router {run.router}), and records carry no times of single computations.")
    if len(flows) > MOST_MICROBATCHES:
        return _nothing(f"The plan has {len(flows)} microbatches; more than {MOST_MICROBATCHES} are not legible as bars.")
    figures, why = figures_of(view, without=state.silent)
    if figures is None:
        return _nothing(f"Nothing can be planned now: {why}.")
    pipeline = pipeline_of(figures)
    number = {peer: i for i, peer in enumerate(pipeline.peers)}
    usable = [(data_peer, *relays) for data_peer, relays in flows if all(p in number for p in (data_peer, *relays))]
    if not usable:
        return _nothing("The published plan leads over peers that are gone; the next one is not published yet.")
    forecast = _BarRun(pipeline, [tuple(number[peer] for peer in path) for path in usable])
    result = forecast.run()
    stages = {i: stage for stage, peers in enumerate(pipeline.stage_peers) for i in peers}
    rows: dict[int, list[list[float | int | str]]] = {}
    for peer, m, position, begin_us, end_us in forecast.bars:
        what = "loss" if position == forecast.turn else "forward" if position < forecast.turn else "backward"
        rows.setdefault(peer, []).append([what, m, _seconds(begin_us), _seconds(end_us)])
    bars = [
        {"peer": peer, "name": called(peer, state.records.get(peer)), "stage": stages[i], "bars": rows[i]}
        for i in sorted(rows, key=lambda i: (stages[i], pipeline.peers[i]))
        for peer in (pipeline.peers[i],)
    ]
    gone = len(flows) - len(usable)
    left_out = f" {gone} more of the plan lead over peers that are gone or do not answer." if gone else ""
    reason = f"{MISSING}{left_out}"
    return {"seconds": _seconds(result.makespan_us), "rows": bars, "microbatches": len(usable), "reason": reason}


def _nothing(reason: str) -> dict[str, Any]:
    return {"seconds": 0.0, "rows": [], "microbatches": 0, "reason": reason}


def _seconds(us: float) -> float:
    return round(us / MICROSECONDS, 4)
