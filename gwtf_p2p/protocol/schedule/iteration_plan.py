"""The plan of an iteration in ids, and how it follows from what the records say.

`plan_for` is a pure function of the figures, of the flows that the data peers have published, of an effort and of a seed. It
knows no epoch, so peers with equal views hold equal plans without talking, also one that has just come. Rules:

- While nobody has published flows (or not all), the plan is made from nothing.
- Otherwise the published flows are kept; only stage peers that are gone are replaced, each by the one of least load (in a large
  swarm as `mending` does it); and the search goes on from there. What it finds is taken only if it saves more than
  `WORTH_CHANGING`: below lies the noise of measured times, and flows that still make sense are worth keeping.
- One made from nothing takes their place if it saves more than `WORTH_BEGINNING_ANEW`. The first plan of a swarm is made while
  little is measured, and what follows from it move by move stayed up to 60 % above what a new beginning found (live, twelve
  stage peers whose lines differ twentyfold).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.schedule.first_paths import first_paths
from gwtf_p2p.protocol.schedule.from_view import pipeline_of
from gwtf_p2p.protocol.schedule.load_estimate import Load
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS, mended, with_gaps
from gwtf_p2p.protocol.schedule.model import Path, Pipeline
from gwtf_p2p.protocol.schedule.search import Effort, Planned, foreseen, plan_iteration, schedule, score_of
from gwtf_p2p.protocol.schedule.underway import Underway
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.plans import Flow, IterationPlan, PipelineFigures, PlannedFlow, PlanRequest

WORTH_CHANGING = 0.004
"""Of the score of a plan."""

WORTH_BEGINNING_ANEW = 0.03
"""Hardly a flow stays then."""

PER_SECOND = 12_000
"""Computations in forecasts per second of the iteration that is planned: 3 % of one core (measured: 400,000 in a second)."""

FROM_NOTHING, GOING_ON, REVISING = 200_000, 60_000, 40_000
"""The most computations in forecasts. What is gained by more is under 1 %."""

FULL_EFFORT_PEERS = 250
"""Of many stage peers a random move finds a good one rarely: larger swarms get fewer forecasts, and rely on the first paths."""

TICK_S = 0.5
"""Peers that see a change at about the same time should revise for the same time."""

OF_ONE_PROCESS = 128
"""Revisions that are remembered. A peer needs its last one; in the simulator all data peers are in one process."""

SMALL_REMEMBERED = 16
"""Of these, what they were made from: the next one, which begins from it, comes soon. Large swarms' are mended without."""


def whole_ticks(since_s: float, peers: int) -> int:
    """The newest moment for which a plan is revised, when so much of the iteration is over. A swarm of n peers has changes n
    times as often: from `MANY_PEERS` on its plan is revised for several at once, every `TICK_S` for each hundred peers. Until
    then what they were to do goes elsewhere by repair."""
    ticks, period = int(since_s / TICK_S), max(1, 2 * peers // MANY_PEERS)
    return ticks - ticks % period


@lru_cache(maxsize=8)
def plan_for(figures: PipelineFigures, published: tuple[Flow, ...], seed: int) -> IterationPlan:
    """See the module docstring. Results are kept for peers of one process that plan on the same view, as in the simulator."""
    pipeline, fresh = _from_nothing(figures, seed)
    paths = _kept_paths(figures, pipeline, published)
    if not paths:
        return _in_ids(figures, pipeline, fresh, _by_release(fresh), "planned from nothing")
    kept = foreseen(pipeline, paths)
    effort = _effort(pipeline, kept.forecast.makespan_us / MICROSECONDS, GOING_ON)
    found = schedule(pipeline, kept, effort.computations, Random(seed))
    least = score_of(kept.forecast)
    planned, how = kept, "kept"
    for plan, reason, worth in ((found, "planned on", WORTH_CHANGING), (fresh, "planned anew", WORTH_BEGINNING_ANEW)):
        if score_of(plan.forecast) < (1 - worth) * least:
            planned, how, least = plan, reason, score_of(plan.forecast)
    return _in_ids(figures, pipeline, planned, _by_release(planned), how)


@lru_cache(maxsize=8)
def _from_nothing(figures: PipelineFigures, seed: int) -> tuple[Pipeline, Planned]:
    pipeline = pipeline_of(figures)
    first = foreseen(pipeline, first_paths(pipeline))
    seconds = first.forecast.makespan_us / MICROSECONDS
    return pipeline, plan_iteration(pipeline, first, _effort(pipeline, seconds, FROM_NOTHING), seed)


def _by_release(planned: Planned) -> list[int]:
    return sorted(range(len(planned.paths)), key=lambda m: (planned.forecast.release_us[m], m))


def make_plan(request: PlanRequest) -> IterationPlan | None:
    """What a router has asked for. It takes long, so whoever runs the peer calls it where it disturbs nobody."""
    if request.revises is not None:
        return revise(request.figures, request.revises, request.begun_ticks, request.seed)
    if request.of_all is None:
        return plan_for(request.figures, request.published, request.seed)
    plan = plan_for(request.of_all, request.published, request.seed)
    return _with_replaced(request.figures, plan) or plan_for(request.figures, request.published, request.seed)


def _with_replaced(figures: PipelineFigures, plan: IterationPlan) -> IterationPlan | None:
    """A plan with the stage peers replaced that are not among the figures; None when a data peer is not."""
    flows = tuple((flow.data_peer, flow.stage_peers) for flow in plan.flows)
    if not _are_all_wanted(figures, flows):
        return None
    gone = frozenset({peer.peer for peer in plan.figures.peers} - {peer.peer for peer in figures.peers})
    return replace(plan, figures=figures, flows=_now(plan, mended(plan.figures, flows, gone)))


def _now(plan: IterationPlan, flows: Sequence[Flow]) -> tuple[PlannedFlow, ...]:
    """Each planned flow through these stage peers; the very same one, where they are the same."""
    return tuple(
        flow if flow.stage_peers == stage_peers else replace(flow, stage_peers=stage_peers)
        for flow, (_, stage_peers) in zip(plan.flows, flows, strict=True)
    )


@lru_cache(maxsize=OF_ONE_PROCESS)
def revise(figures: PipelineFigures, plan: IterationPlan, begun_ticks: int, seed: int) -> IterationPlan | None:
    """The plan of an iteration that has run for so many ticks when peers have come or gone: only what is still to come changes.

    What is under way is known by forecast (`pipeline_underway`). Flows keep their places. None when a data peer has come or
    gone: its flows are not planned, or are in the way. A plan that was made for a large swarm is mended, and no more."""
    first = plan.revises or plan
    if len(first.figures.peers) >= MANY_PEERS:
        return _mended(figures, plan, first, begun_ticks)
    found = _changed(figures, plan, begun_ticks)
    if found is None:
        return None
    pipeline, paths, start = found
    effort = _effort(pipeline, plan.makespan_s, REVISING)
    begun = Planned(tuple(paths), start.forecast(paths))
    planned = schedule(pipeline, begun, effort.computations, Random(seed), start)
    plan_now = _in_ids(figures, pipeline, planned, range(len(paths)), "revised")
    return replace(plan_now, revises=plan, begun_ticks=begun_ticks)


def _mended(figures: PipelineFigures, plan: IterationPlan, first: IterationPlan, begun_ticks: int) -> IterationPlan | None:
    """It revises the first plan of the iteration: nothing is forecast from those between."""
    flows = tuple((flow.data_peer, flow.stage_peers) for flow in plan.flows)
    if not _are_all_wanted(figures, flows):
        return None
    now = _now(plan, mended(figures, flows))
    changed = sum(one is not other for one, other in zip(now, plan.flows, strict=True))
    return IterationPlan(figures, now, plan.makespan_s, f"mended: {changed} of {len(now)} microbatches", first, begun_ticks)


def _are_all_wanted(figures: PipelineFigures, flows: Sequence[Flow]) -> bool:
    """Has each data peer as many flows as it has microbatches?"""
    wanted = Counter({p.peer: max(0, p.capacity) for p in figures.peers if p.stage == DATA_STAGE})
    return Counter(data_peer for data_peer, _ in flows) == wanted


@lru_cache(maxsize=SMALL_REMEMBERED)
def _changed(figures: PipelineFigures, plan: IterationPlan, begun_ticks: int) -> tuple[Pipeline, list[Path], Underway] | None:
    """The pipeline with those that are gone outside of its stages, the plan's paths mended, and where everything is."""
    flows = tuple((flow.data_peer, flow.stage_peers) for flow in plan.flows)
    kept = pipeline_of(figures)
    mended_paths = _kept_paths(figures, kept, flows)
    if not mended_paths:
        return None
    pipeline = pipeline_of(_with_newcomers(plan, figures))
    number = {peer: i for i, peer in enumerate(pipeline.peers)}
    present = {number[peer] for peer in kept.peers}
    pipeline = replace(pipeline, stage_peers=tuple(tuple(i for i in s if i in present) for s in pipeline.stage_peers))
    before = _numbered(plan, number)
    paths = [tuple(number[kept.peers[i]] for i in path) for path in mended_paths]
    start = underway(plan) or Underway.begun(pipeline_of(plan.figures), before)
    return pipeline, paths, start.later(before, begun_ticks * TICK_S * MICROSECONDS).changed(pipeline, paths)


@lru_cache(maxsize=OF_ONE_PROCESS)
def underway(plan: IterationPlan) -> Underway | None:
    """Where everything was by forecast when a plan was revised; None for one that was not."""
    if plan.revises is None:
        return None
    found = _changed(plan.figures, plan.revises, plan.begun_ticks)
    assert found is not None, "it was revised"
    pipeline, _, start = found
    return start.later(_numbered(plan, {peer: i for i, peer in enumerate(pipeline.peers)}), start.at_us)


def _numbered(plan: IterationPlan, number: Mapping[PeerId, int]) -> list[Path]:
    return [(number[flow.data_peer], *(number[peer] for peer in flow.stage_peers)) for flow in plan.flows]


def _everybody(plan: IterationPlan) -> PipelineFigures:
    """Those of a plan, and of the plans that it revises, in the order in which they came."""
    return plan.figures if plan.revises is None else _with_newcomers(plan.revises, plan.figures)


def _with_newcomers(plan: IterationPlan, figures: PipelineFigures) -> PipelineFigures:
    """The peers that the plan knows of in their order, whether or not they are there, then the others."""
    former = _everybody(plan).peers
    now, then = ({p.peer: p for p in peers} for peers in (figures.peers, former))
    others = (p for p in figures.peers if p.peer not in then)
    return replace(figures, peers=(*(now.get(p.peer, p) for p in former), *others))


def _effort(pipeline: Pipeline, seconds: float, most: int) -> Effort:
    """By the time that an iteration takes, by the forecast or the plan that there is: counted, so equal for all peers."""
    part = min(1.0, FULL_EFFORT_PEERS / len(pipeline.peers))
    computations = int(part * min(most, most / FROM_NOTHING * PER_SECOND * seconds))
    return Effort(steps=computations // 60, computations=computations)


def _in_ids(figures: PipelineFigures, pipeline: Pipeline, planned: Planned, order: Sequence[int], how: str) -> IterationPlan:
    seen, peers = planned.forecast, pipeline.peers
    flows = []
    for m in order:
        path = planned.paths[m]
        release_us = seen.release_us[m] - pipeline.starts_us[path[0]]
        stage_peers = tuple(peers[i] for i in path[1:])
        flows.append(PlannedFlow(peers[path[0]], stage_peers, release_us / MICROSECONDS, seen.finish_us[m] / MICROSECONDS))
    makespan_s = seen.makespan_us / MICROSECONDS
    return IterationPlan(figures, tuple(flows), makespan_s, f"{how}: {len(flows)} microbatches in {makespan_s:.2f} s")


def _kept_paths(figures: PipelineFigures, pipeline: Pipeline, published: Sequence[Flow]) -> list[Path]:
    """The published flows with every stage peer that is gone replaced; empty when not all that is wanted is published."""
    if not _are_all_wanted(figures, published):
        return []
    if len(figures.peers) >= MANY_PEERS:
        number = {peer: i for i, peer in enumerate(pipeline.peers)}
        return [(number[flow[0]], *(number[peer] for peer in flow[1])) for flow in mended(figures, published)]
    return _with_stage_peers(pipeline, published)


def _with_stage_peers(pipeline: Pipeline, flows: Sequence[Flow]) -> list[Path]:
    """Paths of flows whose data peers are all there, with stage peers of least load for those that are not."""
    ways, gaps = with_gaps(pipeline, flows)
    for m, k in gaps:
        ways[m][k] = pipeline.stage_peers[k][0]
    paths: list[Path] = [tuple(way) for way in ways]
    load = Load(pipeline, paths if gaps else [])
    for m, k in gaps:
        paths[m] = _least_loaded(pipeline, load, m, paths[m], k)
    return paths


def _least_loaded(pipeline: Pipeline, load: Load, m: int, path: Path, stage: int) -> Path:
    """Change microbatch `m` to the stage peer of a stage that makes the load least; ties to the lowest number."""
    choices = [(*path[:stage], i, *path[stage + 1 :]) for i in pipeline.stage_peers[stage]]
    best = min(choices, key=lambda choice: load.value_of([(m, choice)]))
    load.change([(m, best)])
    return best


class Mended:
    """Flows with every stage peer that is gone replaced, all together: whoever repairs one of them by the same records makes
    the same choice for the others, so they do not all go to one stage peer. For swarms that are not large (else `repairs`)."""

    def __init__(self, figures: PipelineFigures, flows: Sequence[Flow]) -> None:
        pipeline = pipeline_of(figures)
        paths = _with_stage_peers(pipeline, flows)
        self._flows = [(pipeline.peers[path[0]], tuple(pipeline.peers[i] for i in path[1:])) for path in paths]

    def flow_at(self, data_peer: PeerId, index: int) -> tuple[PeerId, ...] | None:
        """The stage peers planned for a data peer's microbatch, if it has planned any."""
        share = [stage_peers for owner, stage_peers in self._flows if owner == data_peer]
        return share[index % len(share)] if share else None
