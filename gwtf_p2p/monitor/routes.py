"""The plan of a running swarm, made by the observer from the same records by the same code as the data peers make theirs.

A plan follows the records and the plan before it, so an observer that has only come may hold a first plan where the peers have
kept an older one: what they really use is in `measured_s`, which data peers publish for the routes that they have used last.
Routers that choose hop by hop (SWARM's, greedy, random) or negotiate have no plan to show, only measured routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.live.progress import NAME, route_name
from gwtf_p2p.protocol.costs import MICROSECONDS
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.iteration_plan import IterationPlan
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.plan import Plan
from gwtf_p2p.protocol.records import RunRecord, StageRecord
from gwtf_p2p.protocol.routers.base import PlanningRouter, Router
from gwtf_p2p.protocol.routers.factory import default_config, make_router


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
    _router: Router | None = None
    _planned: dict[tuple[PeerId, str], tuple[int, float]] = field(default_factory=dict)

    def look(self, records: Sequence[StageRecord], now: float) -> list[str]:
        """One line per change of the plan, with its reason."""
        view = NetworkView.of(records, self.run.stages, self.run.activation_bytes)
        before, former_reason = self._planned, self.reason
        if view.data_peers:
            self._plan(view, now)
        self.lines = tuple(self._lines(view))
        told = [f"{_flow(key)}: {before.get(key, (0, 0.0))[0]} -> {self._planned.get(key, (0, 0.0))[0]} microbatches"
                for key in sorted({*before, *self._planned})
                if before.get(key, (0, 0.0))[0] != self._planned.get(key, (0, 0.0))[0]]  # fmt: skip
        if told or (self.reason != former_reason and not before):
            return [f"{self.reason}; {len(told)} routes changed", *told]
        return []

    def _plan(self, view: NetworkView, now: float) -> None:
        if self._router is None:
            router = self.run.router
            self._router = make_router(router, default_config(router), self.run.seed, view.data_peers[0])
        self._router.observe_view(view, now)
        if isinstance(self._router, PlanningRouter):
            job = self._router.planning(frozenset())
            if job is not None:
                self._router.planned(job())
        plan, self.reason = getattr(
            self._router, "plan", (None, f"router {self.run.router} chooses hop by hop: there is no plan")
        )
        found: dict[tuple[PeerId, str], list[float]] = {}
        if isinstance(plan, IterationPlan):
            for flow in plan.flows:
                found.setdefault((flow.data_peer, route_name(flow.relays)), []).append(flow.finish_s - flow.release_s)
        elif isinstance(plan, Plan):
            for held in plan.flows:
                found.setdefault((held.data_peer, route_name(held.relays)), []).append(held.cost_us / MICROSECONDS)
        self._planned = {key: (len(seconds), sum(seconds) / len(seconds)) for key, seconds in found.items()}

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
