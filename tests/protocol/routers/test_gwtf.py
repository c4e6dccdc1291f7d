"""`gwtf` as its peers see it: shares of one plan, free flows, repairs, and plans that do not change without need."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, Router, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.routers.greedy import GreedyRouter, HopConfig
from gwtf_p2p.protocol.routers.gwtf import GwtfConfig, GwtfRouter
from gwtf_p2p.protocol.routers.random import RandomRouter
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PeerState, StageRecord
from tests.exploring import examples
from tests.protocol.flow.problems import Size, random_view, record

A, B = PeerId("a"), PeerId("b")
MICROBATCH_BYTES = 1_000_000


def two_stages(*, demand: int = 2, capacity: int = 2) -> list[StageRecord]:
    """Data peers a and b, stages {p, q} and {r, s}; the later a stage peer's letter, the slower it is."""
    stage_peers = [record(n, k, capacity, s) for n, k, s in (("p", 1, 0.1), ("q", 1, 0.2), ("r", 2, 0.1), ("s", 2, 0.2))]
    return [record("a", 0, demand), record("b", 0, demand), *stage_peers]


def view_of(records: list[StageRecord], stages: int = 2) -> NetworkView:
    return NetworkView.of(records, stages, MICROBATCH_BYTES)


def router_of(me: PeerId, records: list[StageRecord]) -> GwtfRouter:
    router = GwtfRouter(me)
    router.observe_view(view_of(records), 0.0)
    return router


def ask(router: Router, owner: PeerId, index: int, excluding: str = "", is_new: bool = True) -> Route | NoRoute:
    excluded = frozenset(map(PeerId, excluding))
    return router.route(RouteRequest(MicrobatchId(owner, 0, index), owner, Stage(1), Stage(2), excluded, is_new=is_new), 0.0)


def routes(router: Router, owner: PeerId, count: int) -> list[tuple[PeerId, ...]]:
    answers = [ask(router, owner, n) for n in range(count)]
    return [answer.peers for answer in answers if isinstance(answer, Route)]


def test_two_data_peers_with_equal_views_take_disjoint_shares_of_one_plan() -> None:
    one, other = (router_of(me, two_stages()) for me in (A, B))
    assert one.plan == other.plan
    used = Counter(peer for route in routes(one, A, 9) + routes(other, B, 9) for peer in route)
    assert used == {"p": 2, "q": 2, "r": 2, "s": 2}, "four flows fill what the stage peers have, and no more"


@examples(25)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_plan_depends_on_the_records_and_not_on_their_order(seed: int, random: Random) -> None:
    view = random_view(np.random.default_rng(seed), Size(stages=3, stage_peers=3, data_peers=2, demand=3))
    records = list(view.records.values())
    random.shuffle(records)
    routers = [GwtfRouter(me) for me in view.data_peers]
    for router in routers:
        router.observe_view(NetworkView.of(records, view.stages, view.microbatch_bytes), 0.0)
        records.reverse()
    plan, _ = routers[0].plan
    assert all(router.plan[0] == plan for router in routers)
    load = Counter(peer for flow in plan.flows for peer in flow.stage_peers)
    assert all(view.records[peer].capacity >= count for peer, count in load.items())
    assert sum(len(routes(router, router.me, 9)) for router in routers) == len(plan.flows)


def test_a_flow_carries_one_microbatch_at_a_time_cheapest_first() -> None:
    router = router_of(A, [record("a", 0, 2), *two_stages()[2:]])
    first, second, third = (ask(router, A, n) for n in range(3))
    assert isinstance(first, Route) and first.peers == ("p", "r")
    assert isinstance(second, Route) and second.peers == ("p", "r")
    assert third == NoRoute("all 2 flows are in use")
    router.observe_end(MicrobatchId(A, 0, 0), 1.0)
    assert isinstance(ask(router, A, 2), Route)
    assert isinstance(ask(router, A, 3), NoRoute)


def test_without_a_view_or_an_own_record_there_is_no_route() -> None:
    assert ask(GwtfRouter(A), A, 0) == NoRoute("own record is not in the view yet")
    assert ask(router_of(A, two_stages()[1:]), A, 0) == NoRoute("own record is not in the view yet")


def test_a_free_flow_is_mended_around_an_excluded_peer() -> None:
    router = router_of(A, [record("a", 0, 2), *two_stages()[2:]])
    answer = ask(router, A, 0, excluding="r")
    assert isinstance(answer, Route)
    assert answer.peers == ("p", "s")
    assert answer.reason == "flow with 1 excluded peers replaced"
    assert isinstance(ask(router, A, 1), Route), "the other flow is free still"
    assert isinstance(ask(router, A, 2), NoRoute), "the mended one is in use"
    assert ask(router_of(A, two_stages()), A, 0, excluding="rs") == NoRoute("no peer of stage 2 can be asked")


def repair(router: Router, stage: int, after: str, excluding: str, rejoin: str | None) -> Route | NoRoute:
    onward = PeerId(rejoin) if rejoin else None
    excluded = frozenset(PeerId(name) for name in excluding)
    request = RouteRequest(MicrobatchId(A, 0, 0), PeerId(after), Stage(stage), Stage(stage), excluded, onward)
    return router.route(request, 0.0)


def linked(name: str, stage: int, to: dict[str, float], occupancy: int = 0) -> StageRecord:
    """Latencies in seconds one way, all else equal."""
    links = tuple(LinkMeasurement(PeerId(p), 2 * s, 1e8, LinkSource.TRAFFIC, 5, 0.0) for p, s in to.items())
    return replace(record(name, stage, 2, links=links), occupancy=occupancy)


def chain(*, busy: str = "") -> list[StageRecord]:
    """a - p - {q, r, s} - t: q is nearest to p, r nearest to t, s is far from both."""
    middle = {"q": (0.01, 0.30), "r": (0.02, 0.03), "s": (0.50, 0.50)}
    stage_peers = [linked(n, 2, {"p": near, "t": far}, 2 if n in busy else 0) for n, (near, far) in middle.items()]
    return [record("a", 0, 2), linked("p", 1, {"a": 0.01}), *stage_peers, linked("t", 3, {"a": 0.01})]


def stage_peer_router(records: list[StageRecord]) -> GwtfRouter:
    router = GwtfRouter(PeerId("p"))
    router.observe_view(view_of(records, stages=3), 0.0)
    return router


def test_a_repair_takes_the_cheapest_peer_between_its_neighbours() -> None:
    answer = repair(stage_peer_router(chain()), 2, "p", "x", "t")
    assert isinstance(answer, Route) and answer.peers == ("r",), "cheapest through, not the nearest to the sender"
    excluded = repair(stage_peer_router(chain()), 2, "p", "r", "t")
    assert isinstance(excluded, Route) and excluded.peers == ("q",)


def test_a_repair_prefers_peers_with_room_by_the_view_and_by_what_was_sent_since() -> None:
    router = stage_peer_router(chain(busy="r"))
    chosen = [repair(router, 2, "p", "", "t") for _ in range(5)]
    peers = [answer.peers[0] for answer in chosen if isinstance(answer, Route)]
    assert peers[:4] == ["q", "q", "s", "s"], "two microbatches fill q, two fill s"
    assert peers[4] == "r", "when nobody is known to have room, the stage peer's verdict decides"
    assert "not all known to have room" in chosen[4].reason
    router.observe_view(view_of(chain(), stages=3), 1.0)
    again = repair(router, 2, "p", "", "t")
    assert isinstance(again, Route) and again.peers == ("r",), "a new view counts afresh"


def test_a_peer_that_refused_is_avoided_until_the_next_view() -> None:
    router = stage_peer_router(chain())
    hop = HopObservation(MicrobatchId(A, 0, 0), PeerId("p"), PeerId("r"), Stage(2), False, None, "BUSY")
    router.observe_hop(hop, 0.0)
    answer = repair(router, 2, "p", "", "t")
    assert isinstance(answer, Route) and answer.peers == ("q",)


def test_a_repair_of_the_rest_of_the_route_counts_the_way_home() -> None:
    request = RouteRequest(MicrobatchId(A, 0, 0), PeerId("p"), Stage(2), Stage(3))
    answer = stage_peer_router(chain()).route(request, 0.0)
    assert isinstance(answer, Route) and answer.peers == ("r", "t")


def test_stage_peers_repair_without_ever_planning() -> None:
    router = stage_peer_router(chain())
    repair(router, 2, "p", "", "t")
    assert router.planner.plans_made == 0


def test_an_unchanged_view_is_not_planned_again() -> None:
    router = router_of(A, two_stages())
    plan = router.plan
    for n in range(5):
        later = [replace(r, sequence_number=n, occupancy=n % 2, flows_held={"a": n}) for r in two_stages()]
        router.observe_view(view_of(later), float(n))
        assert router.plan == plan
    assert router.planner.plans_made == 1


def test_small_changes_of_measured_times_move_no_flow() -> None:
    rng = np.random.default_rng(0)
    view = random_view(rng, Size(stages=3, stage_peers=5, data_peers=2, demand=4))
    router = GwtfRouter(view.data_peers[0])
    router.observe_view(view, 0.0)
    routes_before = [(f.data_peer, f.stage_peers) for f in router.plan[0].flows]
    for n in range(10):
        wobbled = []
        for r in view.records.values():
            assert r.forward is not None
            forward = replace(r.forward, median_s=r.forward.median_s * float(rng.uniform(0.99, 1.01)))
            wobbled.append(replace(r, forward=forward, sequence_number=n + 1))
        router.observe_view(NetworkView.of(wobbled, view.stages, view.microbatch_bytes), float(n))
        plan, _ = router.plan
        assert [(f.data_peer, f.stage_peers) for f in plan.flows] == routes_before
    assert router.planner.flows_changed == 0
    costs = {f.stage_peers: f.cost_us for f in plan.flows}
    problem_costs = NetworkView.of(wobbled, view.stages, view.microbatch_bytes)
    flow = plan.flows[0]
    hops = zip(flow.peers[:-1], flow.peers[1:], strict=True)
    assert costs[flow.stage_peers] == sum(problem_costs.hop_cost_us(i, j) for i, j in hops), (
        "costs follow the records all the same"
    )


def test_a_great_improvement_is_taken() -> None:
    records = two_stages(demand=1)
    router = router_of(A, records)
    assert {p for f in router.plan[0].flows for p in f.stage_peers} == {"p", "r"}
    fast = [*records[:3], record("q", 1, 2, 0.001), *records[4:]]
    router.observe_view(view_of([replace(r, sequence_number=1) for r in fast]), 1.0)
    plan, reason = router.plan
    assert {p for f in plan.flows for p in f.stage_peers} == {"q", "r"}
    assert reason.startswith("planned anew: 2 of 2 flows wanted")
    assert router.planner.flows_changed == 4, "two went, two came"


def test_when_a_stage_peer_goes_only_its_flows_change() -> None:
    stage_peers = [record(name, stage, 2, 0.1) for stage, names in ((1, "pqr"), (2, "stu")) for name in names]
    records = [record("a", 0, 4), *stage_peers]
    router = router_of(A, records)
    before = Counter(f.stage_peers for f in router.plan[0].flows)
    gone = PeerId("p")
    router.observe_view(view_of([r for r in records if r.peer != gone]), 1.0)
    after = Counter(f.stage_peers for f in router.plan[0].flows)
    kept = Counter({stage_peers: n for stage_peers, n in before.items() if gone not in stage_peers})
    assert sum(after.values()) == 4
    assert kept - after == Counter(), "flows that did not use the lost peer are as they were"
    assert router.plan[1].startswith("repaired: 4 of 4 flows wanted")


def test_a_microbatch_on_a_dropped_flow_still_takes_the_place_of_one() -> None:
    router = router_of(A, [record("a", 0, 2), *two_stages()[2:]])
    assert ask(router, A, 0)
    router.observe_view(view_of([record("a", 0, 2), *[r for r in two_stages()[2:] if r.peer != "p"]]), 1.0)
    assert isinstance(ask(router, A, 1), Route)
    assert isinstance(ask(router, A, 2), NoRoute), "two flows, of which one waits for the microbatch that is under way"


def test_a_repair_after_the_end_takes_no_flow() -> None:
    """A peer is lost after the microbatch came back: its part is redone, and nobody would ever free a flow for that."""
    router = router_of(A, [record("a", 0, 1), *two_stages()[2:]])
    assert isinstance(ask(router, A, 0), Route)
    router.observe_end(MicrobatchId(A, 0, 0), 1.0)
    assert isinstance(ask(router, A, 0, excluding="p", is_new=False), Route)
    assert isinstance(ask(router, A, 1), Route), "the flow is free"


def test_scarce_capacity_is_shared_so_that_every_iteration_can_end() -> None:
    """The cheapest three flows would all be a's."""
    near = [linked(n, k, {"a": 0.001, "b": 0.4}) for n, k in (("p", 1), ("r", 2))]
    records = [record("a", 0, 3), record("b", 0, 3), *near]
    shares = [len(routes(router_of(me, records), me, 9)) for me in (A, B)]
    assert shares == [1, 1]


def test_a_data_peer_without_a_flow_borrows_what_is_free_one_microbatch_at_a_time() -> None:
    records = [record("a", 0, 1), record("b", 0, 1), record("p", 1, 1), record("r", 2, 1)]
    router = router_of(B, records)
    assert router.plan[0].share_of(B) == ()
    borrowed = ask(router, B, 0)
    assert isinstance(borrowed, Route) and borrowed.peers == ("p", "r")
    assert isinstance(ask(router, B, 1), NoRoute)
    taken = [replace(r, occupancy=1) if r.stage == 1 else r for r in records]
    router = router_of(B, taken)
    answer = ask(router, B, 0)
    assert isinstance(answer, NoRoute) and "no room in the records" in answer.reason


def test_peers_that_are_not_online_take_no_flows() -> None:
    records = [replace(r, state=PeerState.SYNCING) if r.peer == "p" else r for r in two_stages()]
    assert "p" not in {peer for f in router_of(A, records).plan[0].flows for peer in f.stage_peers}


def test_an_unknown_cost_model_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cost: expected one of iteration, paper, got 'linear'"):
        GwtfConfig(cost="linear")


def hop_routers() -> list[Router]:
    one = HopConfig(in_flight=1)
    return [GreedyRouter(), RandomRouter(Random(1)), GreedyRouter(one), RandomRouter(Random(2), one)]


def test_greedy_takes_the_cheapest_next_hop_with_room() -> None:
    router = GreedyRouter()
    router.observe_view(view_of(chain(busy="q"), stages=3), 0.0)
    answer = repair(router, 2, "p", "", None)
    assert isinstance(answer, Route) and answer.peers == ("r",)
    router.observe_view(view_of(chain(), stages=3), 0.0)
    answer = repair(router, 2, "p", "", None)
    assert isinstance(answer, Route) and answer.peers == ("q",), "the nearest, whatever comes after it"
    answer = repair(router, 2, "p", "", "t")
    assert isinstance(answer, Route) and answer.peers == ("r",), "a repair has to fit on both sides"


def test_random_takes_any_peer_with_room_and_the_same_for_the_same_seed() -> None:
    drawn = []
    for _ in range(2):
        router = RandomRouter(Random(3))
        router.observe_view(view_of(chain(busy="q"), stages=3), 0.0)
        drawn.append([repair(router, 2, "p", "", None) for _ in range(4)])
    assert drawn[0] == drawn[1]
    assert sorted(answer.peers[0] for answer in drawn[0] if isinstance(answer, Route)) == ["r", "r", "s", "s"]


@pytest.mark.parametrize("router", hop_routers(), ids=["greedy", "random", "greedy-1", "random-1"])
def test_hop_routers_say_why_there_is_no_route(router: Router) -> None:
    assert isinstance(repair(router, 2, "p", "", None), NoRoute), "no view yet"
    router.observe_view(view_of(chain(), stages=3), 0.0)
    assert repair(router, 2, "p", "qrs", None) == NoRoute("no peer of stage 2 can be asked")


@pytest.mark.parametrize("router", hop_routers()[2:], ids=["greedy-1", "random-1"])
def test_hop_routers_keep_their_limit_of_microbatches_in_flight(router: Router) -> None:
    router.observe_view(view_of(two_stages()), 0.0)
    assert isinstance(ask(router, A, 0), Route)
    assert isinstance(ask(router, A, 0, is_new=False), Route), "the same microbatch may be sent again"
    assert ask(router, A, 1) == NoRoute("1 of 1 in flight")
    router.observe_end(MicrobatchId(A, 0, 0), 0.0)
    assert isinstance(ask(router, A, 0, is_new=False), Route), "a repair after the end takes no place"
    assert isinstance(ask(router, A, 1), Route)
