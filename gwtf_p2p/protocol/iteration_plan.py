"""The plan of an iteration in ids, and the rules by which a new plan follows an older one.

`plan_for` is a pure function: equal figures, earlier plan, effort and seed give equal plans, on any machine, so peers with
equal views hold the same plan without talking. Rules:

- Without an earlier plan (or with other data peers or demands) the plan is made from nothing.
- Otherwise its paths are kept; only relays that are gone are replaced, each by the one of least load; and the search goes on
  from there. When the figures have changed, what it finds is taken only if that saves more than `WORTH_CHANGING`: below lies
  the noise of measured times, and a plan that others may not have changed yet is worth keeping.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from gwtf_p2p.protocol.costs import MICROSECONDS
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.pipeline_model import Path, Pipeline, forecast
from gwtf_p2p.protocol.pipeline_view import PipelineFigures, pipeline_of
from gwtf_p2p.protocol.planner import Effort, Planned, plan_iteration, schedule, score_of
from gwtf_p2p.protocol.planner_load import Load

WORTH_CHANGING = 0.01
"""Of the score of a plan."""

AGAIN = 0.35
"""Of the effort, when a plan goes on from an earlier one."""


@dataclass(frozen=True, slots=True)
class PlannedFlow:
    """One microbatch of `data_peer`. `release_s`: when it leaves, after its data peer's iteration has begun; `finish_s`: when
    it is forecast to be back."""

    data_peer: PeerId
    relays: tuple[PeerId, ...]
    release_s: float
    finish_s: float


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """The flows of all data peers in the order of their release. `makespan_s` is the forecast of the whole."""

    figures: PipelineFigures
    flows: tuple[PlannedFlow, ...]
    makespan_s: float
    reason: str

    def share_of(self, data_peer: PeerId) -> tuple[PlannedFlow, ...]:
        return tuple(flow for flow in self.flows if flow.data_peer == data_peer)

    def changed_from(self, other: IterationPlan) -> int:
        """Flows that came or went."""
        one, two = (Counter((f.data_peer, f.relays) for f in plan.flows) for plan in (self, other))
        return ((one - two) + (two - one)).total()


@lru_cache(maxsize=8)
def plan_for(figures: PipelineFigures, effort: Effort, seed: int, before: IterationPlan | None = None) -> IterationPlan:
    """See the module docstring. Results are kept for peers of one process that plan on the same view, as in the simulator."""
    pipeline = pipeline_of(figures)
    kept = _kept_paths(pipeline, before) if before is not None else []
    if before is None or not kept:
        return _in_ids(figures, pipeline, plan_iteration(pipeline, effort, seed), "first plan")
    found = schedule(pipeline, kept, int(effort.computations * AGAIN), Random(seed))
    if before.figures == figures:
        return _in_ids(figures, pipeline, found, "improved")
    mended = Planned(tuple(kept), forecast(pipeline, kept))
    if score_of(found.forecast) < (1 - WORTH_CHANGING) * score_of(mended.forecast):
        return _in_ids(figures, pipeline, found, "planned again")
    return _in_ids(figures, pipeline, mended, "kept")


def _in_ids(figures: PipelineFigures, pipeline: Pipeline, planned: Planned, how: str) -> IterationPlan:
    seen, peers = planned.forecast, pipeline.peers
    flows = []
    for m in sorted(range(len(planned.paths)), key=lambda m: (seen.release_us[m], m)):
        path = planned.paths[m]
        release_us = seen.release_us[m] - pipeline.starts_us[path[0]]
        relays = tuple(peers[i] for i in path[1:])
        flows.append(PlannedFlow(peers[path[0]], relays, release_us / MICROSECONDS, seen.finish_us[m] / MICROSECONDS))
    makespan_s = seen.makespan_us / MICROSECONDS
    return IterationPlan(figures, tuple(flows), makespan_s, f"{how}: {len(flows)} microbatches in {makespan_s:.2f} s")


def _kept_paths(pipeline: Pipeline, before: IterationPlan) -> list[Path]:
    """The earlier plan's paths with every relay that is gone replaced; empty when other microbatches are wanted."""
    number = {peer: i for i, peer in enumerate(pipeline.peers)}
    wanted = Counter({pipeline.peers[i]: count for i, count in pipeline.demand})
    if Counter(flow.data_peer for flow in before.flows) != wanted:
        return []
    stage_of = {i: k for k, peers in enumerate(pipeline.stage_peers) for i in peers}
    paths: list[Path] = []
    to_choose: list[tuple[int, int]] = []
    for m, flow in enumerate(before.flows):
        path = [number[flow.data_peer]]
        for k, relay in enumerate(flow.relays, start=1):
            i = number.get(relay)
            if i is None or stage_of[i] != k:
                to_choose.append((m, k))
                i = pipeline.stage_peers[k][0]
            path.append(i)
        paths.append(tuple(path))
    load = Load(pipeline, paths)
    for m, k in to_choose:
        choices = [(*paths[m][:k], i, *paths[m][k + 1 :]) for i in pipeline.stage_peers[k]]
        paths[m] = min(choices, key=lambda path: load.value_of([(m, path)]))
        load.change([(m, paths[m])])
    return paths



