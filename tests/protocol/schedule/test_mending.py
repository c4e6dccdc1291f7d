"""Plans of large swarms when stage peers go: what is mended, by whom, and what is left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.schedule.from_view import figures_of
from gwtf_p2p.protocol.schedule.iteration_plan import make_plan, plan_for, revise
from gwtf_p2p.protocol.schedule.mending import LOOKED_AT, MANY_PEERS, STEP, mended
from gwtf_p2p.protocol.schedule.published import published_flow, published_flows
from gwtf_p2p.protocol.schedule.repairs import Repairs
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import Flow, PipelineFigures, PlanRequest, tag
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.flow.problems import record

D = PeerId("d")


def large(of_first: int = MANY_PEERS, **first: object) -> NetworkView:
    """Two stages of which the first is large."""
    names = [record(f"a{n:04}", 1, 2, 0.2) for n in range(of_first)]
    peers: list[StageRecord] = [record("d", 0, 6), *(replace(one, **first) for one in names)]  # type: ignore[arg-type]
    return NetworkView.of([*peers, *(record(n, 2, 2, 0.1) for n in "pqr")], 2, 1000)


def figures(view: NetworkView, *gone: str) -> PipelineFigures:
    found, why = figures_of(view, map(PeerId, gone))
    assert found is not None, why
    return found


def through(*firsts: str) -> list[Flow]:
    return [(D, (PeerId(first), PeerId("pqr"[n % 3]))) for n, first in enumerate(firsts)]


def publishing(view: NetworkView, flows: list[Flow]) -> NetworkView:
    """The same records, and the data peer says that these are its flows."""
    texts = tuple(f"{n}:{''.join(map(tag, path))}" for n, (_, path) in enumerate(flows))
    records = [replace(one, flows=texts) if one.peer == D else one for one in view.records.values()]
    return NetworkView.of(records, view.stages, 1000)


def repaired(view: NetworkView, n: int, *without: str, last: int = 2) -> tuple[PeerId, ...] | None:
    """The flow of the data peer's n-th microbatch up to a stage."""
    return Repairs(view).flow_for(MicrobatchId(D, 0, n), (Stage(1), Stage(last)), frozenset(map(PeerId, without)))


def test_only_flows_that_lead_through_who_is_gone_change_and_nothing_is_forecast() -> None:
    view = large()
    plan = plan_for(figures(view), (), 0)
    lost = plan.flows[0].stage_peers[0]
    revised = revise(figures(view, lost), plan, 4, 0)
    assert revised is not None and revised.revises is plan and revised.makespan_s == plan.makespan_s
    for before, after in zip(plan.flows, revised.flows, strict=True):
        assert (after is before) == (lost not in before.stage_peers)
        assert lost not in after.stage_peers and after.release_s == before.release_s
    again = revise(figures(view, lost, revised.flows[0].stage_peers[0]), revised, 6, 0)
    assert again is not None and again.revises is plan, "of the first one: no chain of plans is kept"


def test_data_peers_that_know_of_other_losses_make_one_plan_and_replace_whom_they_must_not_use() -> None:
    view = large()
    of_all = plan_for(figures(view), (), 0)
    lost = of_all.flows[0].stage_peers[0]
    made = make_plan(PlanRequest(figures(view, lost), 0, of_all=figures(view)))
    assert made is not None and not made.is_revision and made.figures == figures(view, lost)
    for before, after in zip(of_all.flows, made.flows, strict=True):
        assert (after is before) == (lost not in before.stage_peers)
        assert lost not in after.stage_peers
    assert [flow.stage_peers for flow in made.share_of(D)] == [flow.stage_peers for flow in made.flows]


def test_without_a_data_peer_whose_flows_are_in_that_plan_another_one_is_made() -> None:
    view = large()
    more = NetworkView.of([*view.records.values(), record("e", 0, 2)], 2, 1000)
    made = make_plan(PlanRequest(figures(view), 0, of_all=figures(more)))
    assert made is not None and {flow.data_peer for flow in made.flows} == {D}


def test_a_data_peer_that_has_come_or_gone_is_planned_for_in_the_next_iteration() -> None:
    view = large()
    plan = plan_for(figures(view), (), 0)
    more = NetworkView.of([*view.records.values(), record("e", 0, 2)], 2, 1000)
    assert revise(figures(more), plan, 4, 0) is None


def test_gaps_are_spread_and_who_repairs_by_the_same_records_closes_them_alike() -> None:
    view, flows = large(), through(*["a0000"] * 6)
    now = mended(figures(view, "a0000"), flows)
    assert max(Counter(stage_peers[0] for _, stage_peers in now).values()) == 1
    assert [path[1] for _, path in now] == [path[1] for _, path in flows]
    assert [repaired(publishing(view, flows), n, "a0000") for n in range(6)] == [path for _, path in now]


def test_a_repair_looks_at_no_other_stage_and_is_made_once_for_all_without_the_same_peers_of_its_own() -> None:
    """Who else is not to be used, in other stages, is another matter: two that know of other losses still choose alike."""
    view = publishing(large(), through(*["a0000"] * 6))
    whole = [repaired(view, n, "a0000", "p") for n in range(6)]
    assert [path and path[0] for path in whole] == [path and path[0] for path in (repaired(view, n, "a0000") for n in range(6))]
    assert all(path and path[1] != "p" for path in whole)
    assert repaired(view, 0, "p", last=1) == ("a0000",), "nothing is amiss there"


def test_nothing_is_repaired_where_a_stage_has_nobody_left_or_nothing_is_published() -> None:
    view = publishing(large(), through("a0000"))
    assert repaired(view, 0, "p", "q", "r") is None
    instead = repaired(view, 0, "p", "q", "r", "a0000", last=1)
    assert instead is not None and instead[0].startswith("a") and instead[0] != "a0000"
    assert repaired(view, 0, "d") is None and repaired(large(), 0) is None


def test_who_is_not_in_its_stage_any_more_is_replaced_though_nobody_excludes_it() -> None:
    view = publishing(large(), through("a0000", "gone", "a0001"))
    path = repaired(view, 1)
    assert path is not None and path[0] not in {"", "gone", "a0000", "a0001"}


def test_a_stage_peer_without_a_free_slot_comes_after_all_others() -> None:
    """The fastest of the last stage has its two slots spoken for: the third flow goes elsewhere, unless it computes again."""
    for recomputes, expected in ((False, "r"), (True, "q")):
        records = [replace(one, recomputes=recomputes) for one in large().records.values() if one.stage != 2]
        last = [record("p", 2, 2, 0.1), record("q", 2, 2, 0.001), record("r", 2, 2, 9.0)]
        view = NetworkView.of([*records, *(replace(one, recomputes=recomputes) for one in last)], 2, 1000)
        flows: list[Flow] = [(D, (PeerId("a0001"), PeerId(name))) for name in ("q", "q", "p")]
        assert mended(figures(view, "p"), flows)[2][1][1] == expected


def test_of_a_very_large_stage_a_part_is_looked_at_for_each_gap_another() -> None:
    view, size = large(of_first=20 * LOOKED_AT), 20 * LOOKED_AT
    for m, (_, (first, _)) in enumerate(mended(figures(view), through(*["gone"] * 40))):
        assert (int(first[1:]) - (m + 1) * STEP) % size < LOOKED_AT


def test_a_share_is_read_as_it_stands_in_all_that_is_published() -> None:
    view = large()
    plan = plan_for(figures(view), (), 0)
    told = [replace(r, flows=plan.published_by(r.peer), flows_iteration=3) for r in view.records.values()]
    seen = NetworkView.of(told, 2, 1000)
    share = [stage_peers for _, stage_peers in published_flows(seen)]
    assert share == [flow.stage_peers for flow in plan.flows]
    assert [published_flow(seen, MicrobatchId(D, 3, n)) for n in range(7)] == [*share, share[0]]
    assert published_flow(seen, MicrobatchId(D, 2, 0)) == (), "of another iteration"
