"""Plans of an iteration: equal for equal records, whatever their order, never worse than where they started, and kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.schedule.first_paths import first_paths
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.iteration_plan import Mended, plan_for, revise
from gwtf_p2p.protocol.schedule.load_estimate import Load
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS
from gwtf_p2p.protocol.schedule.model import Pipeline, forecast
from gwtf_p2p.protocol.schedule.published import published_flows
from gwtf_p2p.protocol.schedule.search import Effort, balance, foreseen, plan_iteration, schedule, score_of
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import Flow, IterationPlan, PipelineFigures
from tests.exploring import examples
from tests.protocol.flow.problems import Size, random_view, record

SIZE = Size(stages=3, stage_peers=3, data_peers=2, demand=3)
LITTLE = Effort(steps=100, computations=3_000)


def figures_for(seed: int) -> PipelineFigures:
    figures, _ = figures_of(random_view(np.random.default_rng(seed), SIZE))
    assert figures is not None
    return figures


def pipeline_for(seed: int) -> Pipeline:
    return pipeline_of(figures_for(seed))


def flows_of(plan: IterationPlan) -> tuple[Flow, ...]:
    return tuple((flow.data_peer, flow.stage_peers) for flow in plan.flows)


def publishing(view: NetworkView, plan: IterationPlan) -> NetworkView:
    """The view once the data peers have published their shares."""
    records = [
        replace(r, flows=plan.published_by(r.peer), flows_iteration=0) if r.peer in view.data_peers else r
        for r in view.records.values()
    ]
    return NetworkView.of(records, view.stages, view.microbatch_bytes)


@examples(5)
@given(st.integers(0, 2**32))
def test_every_step_gives_valid_paths_and_none_is_worse_than_its_start(seed: int) -> None:
    pipeline = pipeline_for(seed)
    first = first_paths(pipeline)
    balanced = balance(pipeline, first, 200, Random(seed))
    planned = schedule(pipeline, foreseen(pipeline, balanced), 3_000, Random(seed))
    for paths in (first, balanced, planned.paths):
        assert Counter(path[0] for path in paths) == dict(pipeline.demand)
        assert all(stage_peer in pipeline.stage_peers[k] for path in paths for k, stage_peer in enumerate(path))
    assert Load(pipeline, balanced).total <= Load(pipeline, first).total * (1 + 1e-9)
    assert score_of(planned.forecast) <= score_of(forecast(pipeline, balanced))
    assert planned.forecast == forecast(pipeline, planned.paths), "the forecast is that of the paths"


@examples(5)
@given(st.integers(0, 2**32))
def test_the_load_after_changes_is_the_load_of_the_changed_paths(seed: int) -> None:
    pipeline, random = pipeline_for(seed), Random(seed)
    paths = first_paths(pipeline)
    load = Load(pipeline, paths)
    before = load.total
    m = random.randrange(len(paths))
    changed = (paths[m][0], *(random.choice(peers) for peers in pipeline.stage_peers[1:]))
    asked = load.value_of([(m, changed)])
    assert load.total == before, "asking changes nothing"
    undo = load.change([(m, changed)])
    fresh = Load(pipeline, [*paths[:m], changed, *paths[m + 1 :]]).total
    assert load.total == asked and abs(asked - fresh) <= 1e-9 * fresh
    load.undo(undo)
    assert load.total == before


def test_a_faster_stage_peer_with_more_slots_gets_more_microbatches() -> None:
    records = [record("d", 0, 9), record("fast", 1, 4, 0.1), record("slow", 1, 1, 0.4)]
    figures, _ = figures_of(NetworkView.of(records, 1, 1000))
    assert figures is not None
    pipeline = pipeline_of(figures)
    plan = plan_iteration(pipeline, foreseen(pipeline, first_paths(pipeline)), LITTLE, 0)
    used = Counter(figures.peers[path[1]].peer for path in plan.paths)
    assert used["fast"] >= 3 * used["slow"]


@examples(5)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_equal_records_in_any_order_give_equal_plans(seed: int, random: Random) -> None:
    view = random_view(np.random.default_rng(seed), SIZE)
    records = list(view.records.values())
    random.shuffle(records)
    one, other = (figures_of(v)[0] for v in (view, NetworkView.of(records, view.stages, view.microbatch_bytes)))
    assert one is not None and one == other
    assert plan_for.__wrapped__(one, (), 5) == plan_for.__wrapped__(one, (), 5), "computed twice, not remembered"
    shares = [plan_for(one, (), 5).share_of(d) for d in view.data_peers]
    assert [len(share) for share in shares] == [3, 3]


def test_what_does_not_matter_for_a_plan_does_not_change_the_figures() -> None:
    view = random_view(np.random.default_rng(1), SIZE)
    records = [replace(r, occupancy=1, sequence_number=9, spare_flows=2) for r in view.records.values()]
    assert figures_of(NetworkView.of(records, view.stages, view.microbatch_bytes))[0] == figures_of(view)[0]


def test_large_swarms_are_priced_as_small_ones_are() -> None:
    """The matrices that are computed at once, against the links one by one."""
    figures = figures_for(7)
    at_once, one_by_one = pipeline_of(figures), pipeline_of(figures)
    peers = range(len(figures.peers))
    plain = {i * len(peers) + j: one_by_one.links[i * len(peers) + j] for i in peers for j in peers if i != j}
    assert first_paths(at_once) == first_paths(replace(one_by_one, links=plain))


def test_an_unmeasured_stage_peer_is_taken_for_an_average_one() -> None:
    records = [record("d", 0, 1), record("a", 1, 1, 0.1), record("b", 1, 1, 0.3), replace(record("c", 1, 1), forward=None)]
    figures, _ = figures_of(NetworkView.of(records, 1, 1000))
    assert figures is not None
    assert [p.before_s for p in figures.peers if p.peer == "c"] == [0.2]


def test_a_stage_without_peers_is_named() -> None:
    view = NetworkView.of([record("d", 0, 1), record("a", 1, 1)], 2, 1000)
    assert figures_of(view) == (None, "stage 2 has no peer")
    assert figures_of(view, [PeerId("a")])[1] == "stage 1 has no peer"


def test_published_flows_are_what_the_plan_says() -> None:
    view = random_view(np.random.default_rng(2), SIZE)
    plan = plan_for(figures_for(2), (), 0)
    assert published_flows(publishing(view, plan)) == flows_of(plan)


def test_a_published_flow_of_a_stranger_s_making_is_left_out() -> None:
    bad = ("x:00", "0:zz", "1", "2:" + "0" * 24)
    view = NetworkView.of([record("d", 0, 1, flows=bad), *(record(f"r{k}", k, 1) for k in (1, 2, 3))], 3, 1000)
    assert published_flows(view) == ((PeerId("d"), (PeerId(""),) * 3),), "well-formed, but no such stage peers"


def test_flows_that_are_published_are_kept_when_a_time_has_changed_a_little() -> None:
    view = random_view(np.random.default_rng(3), SIZE)
    plan = plan_for(figures_for(3), (), 0)
    for _ in range(6):  # until the search finds nothing more that is worth it
        plan = plan_for(figures_for(3), flows_of(plan), 0)
    changed = [replace(p, before_s=p.before_s * 1.001) for p in plan.figures.peers]
    again = plan_for(replace(plan.figures, peers=tuple(changed)), published_flows(publishing(view, plan)), 0)
    assert again.changed_from(plan) <= 4, "of twelve: a change of one flow counts twice"


def test_a_lost_stage_peer_is_replaced_and_a_revision_changes_nothing_that_has_begun() -> None:
    view = random_view(np.random.default_rng(4), SIZE)
    plan = plan_for(figures_for(4), (), 0)
    lost = plan.flows[0].stage_peers[1]
    figures, _ = figures_of(view, [lost])
    assert figures is not None
    for later in (plan_for(figures, flows_of(plan), 0), revise(figures, plan, 0, 0)):
        assert later is not None and all(lost not in flow.stage_peers for flow in later.flows)
    done = revise(figures, plan, 10**6, 0)
    assert done is not None
    for before, after in zip(plan.flows, done.flows, strict=True):
        assert all(a == b or b == lost for a, b in zip(after.stage_peers, before.stage_peers, strict=True)), (
            "all is over: only mended"
        )


def test_a_revision_gives_a_newcomer_nothing_to_do_before_it_has_come() -> None:
    """One slow stage peer has everything; a second comes when a third of the time has passed, and takes some of the rest."""
    records = [record("d", 0, 9), record("fast", 1, 4, 0.1), record("slow", 1, 1, 0.4)]
    view = NetworkView.of(records, 1, 1000)
    alone, _ = figures_of(view, [PeerId("fast")])
    both, _ = figures_of(view)
    assert alone is not None and both is not None
    plan = plan_for(alone, (), 0)
    came_s = 0.5 * (plan.makespan_s // 1.5)
    revised = revise(both, plan, int(came_s / 0.5), 0)
    assert revised is not None and revised.makespan_s < plan.makespan_s
    moved = [flow for flow in revised.flows if flow.stage_peers == (PeerId("fast"),)]
    assert moved and all(flow.release_s >= came_s for flow in moved)


def test_repairs_by_the_same_records_spread_over_the_stage_peers_that_are_left() -> None:
    records = [record("d", 0, 6), *(record(n, 1, 2) for n in "abc"), *(record(n, 2, 2) for n in "pqr")]
    view = NetworkView.of(records, 2, 1000)
    figures, _ = figures_of(view, [PeerId("a")])
    assert figures is not None
    flows = [(PeerId("d"), (PeerId("abc"[i % 3]), PeerId("pqr"[i % 3]))) for i in range(6)]
    mended = Mended(figures, flows)
    used = Counter(stage_peers[0] for i in range(6) if (stage_peers := mended.flow_at(PeerId("d"), i)) is not None)
    assert used == {"b": 3, "c": 3}


def test_a_large_swarm_with_time_for_few_forecasts_stays_with_what_it_has_and_a_small_one_searches() -> None:
    for stage_peers, searches in ((MANY_PEERS, False), (8, True)):
        records = [record("d", 0, 24), *(record(f"a{n:03}", 1, 2, 0.1 + n / 999) for n in range(stage_peers))]
        figures, _ = figures_of(NetworkView.of(records, 1, 1000))
        assert figures is not None
        pipeline = pipeline_of(figures)
        start = foreseen(pipeline, [(pipeline.demand[0][0], pipeline.stage_peers[1][0])] * 24)
        few = schedule(pipeline, start, 24 * 5 * 5, Random(0))
        assert (few is not start) == searches
        assert schedule(pipeline, start, 24 * 5 * 6, Random(0)) is not start, "six forecasts for 24 microbatches"
