"""The plan of a running swarm: the flows that the data peers publish in their records, forecast by the planner's own model of
the pipeline, beside the times that the data peers have measured on the routes that they used last.

Routers that choose hop by hop (SWARM's, greedy, random) or negotiate have no plan to show, only measured routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.live.measure.run_progress import NAME, route_name
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.model import forecast
from gwtf_p2p.protocol.schedule.published import published_flows
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import RunRecord, StageRecord


@dataclass(frozen=True, slots=True)
class FlowLine:
    """One route of one data peer. `microbatches` of an iteration are planned on it (0: used, but not in the plan).

    `predicted_s`: from injection to return as the plan forecasts it, the mean over its microbatches; `measured_s`: median as
    the data peer measured it. None: unknown.
    """

    data_peer: PeerId
    route: str
    microbatches: int
    predicted_s: float | None
    measured_s: float | None


@dataclass
class RoutePlans:
    """`reason`: why the plan is as it is. `look` tells what has changed."""

    run: RunRecord
    reason: str = "nothing is planned yet"
    lines: tuple[FlowLine, ...] = ()
    _planned: dict[tuple[PeerId, str], tuple[int, float]] = field(default_factory=dict)
    _routable: frozenset[PeerId] = frozenset()

    def look(self, records: Sequence[StageRecord]) -> list[str]:
        """One line per changed route, behind one with the reason; nothing when nothing has changed."""
        run = self.run
        view = NetworkView.of(records, run.stages, run.activation_bytes, None, run.gradient_bytes, run.end_bytes)
        routable = frozenset(peer for peer, record in view.records.items() if record.is_routable)
        before, came_or_went = self._planned, sorted(peer[-NAME:] for peer in routable ^ self._routable)
        self._planned, self.reason, self._routable = *self._forecast(view), routable
        self.lines = tuple(self._lines(view))
        counts = {key: (before.get(key, (0,))[0], self._planned.get(key, (0,))[0]) for key in {*before, *self._planned}}
        told = [f"{_flow(key)}: {old} -> {new} microbatches" for key, (old, new) in sorted(counts.items()) if old != new]
        if not told:
            return []
        if not before:
            why = "the first plan that is seen"
        elif came_or_went:
            why = f"peers came or went: {', '.join(came_or_went)}"
        else:
            why = "measured times changed, or the search has found better"
        return [f"{len(told)} routes changed ({why}); {self.reason}", *told]

    def _forecast(self, view: NetworkView) -> tuple[dict[tuple[PeerId, str], tuple[int, float]], str]:
        """Microbatches and mean seconds of each planned route, and the reason."""
        flows = [flow for flow in published_flows(view) if all(flow[1])]
        if not flows:
            return {}, f"no plan is published (router {self.run.router})"
        figures, why = figures_of(view)
        if figures is None:
            return {}, why
        pipeline = pipeline_of(figures)
        number = {peer: i for i, peer in enumerate(pipeline.peers)}
        usable = [flow for flow in flows if all(peer in number for peer in (flow[0], *flow[1]))]
        seen = forecast(
            pipeline, [tuple(number[peer] for peer in (data_peer, *stage_peers)) for data_peer, stage_peers in usable]
        )
        found: dict[tuple[PeerId, str], list[float]] = {}
        for m, (data_peer, stage_peers) in enumerate(usable):
            seconds = (seen.finish_us[m] - seen.release_us[m]) / MICROSECONDS
            found.setdefault((data_peer, route_name(stage_peers)), []).append(seconds)
        planned = {key: (len(seconds), sum(seconds) / len(seconds)) for key, seconds in found.items()}
        gone = f"; {len(flows) - len(usable)} flows lead over peers that are gone" if len(usable) < len(flows) else ""
        return planned, f"{len(usable)} microbatches, forecast {seen.makespan_us / MICROSECONDS:.2f} s{gone}"

    def _lines(self, view: NetworkView) -> list[FlowLine]:
        measured = {
            (peer, route): seconds
            for peer, record in view.records.items()
            if record.stage == DATA_STAGE
            for route, seconds in record.route_seconds.items()
        }
        lines = []
        for key in sorted({*self._planned, *measured}):
            count, predicted_s = self._planned.get(key, (0, None))
            lines.append(FlowLine(*key, count, predicted_s, measured.get(key)))
        return sorted(lines, key=lambda line: (line.data_peer, -line.microbatches, line.route))

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        flows = [
            {
                "data_peer": line.data_peer,
                "route": line.route.split(">"),
                "microbatches": line.microbatches,
                "predicted_s": line.predicted_s,
                "measured_s": line.measured_s,
            }
            for line in self.lines
        ]
        return {"run_id": self.run.run_id, "router": self.run.router, "reason": self.reason, "flows": flows}


def _flow(key: tuple[PeerId, str]) -> str:
    return f"{key[0][-NAME:]} > {key[1].replace('>', ' > ')}"
