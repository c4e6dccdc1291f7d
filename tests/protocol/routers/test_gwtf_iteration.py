"""`gwtf` with plans of iterations, as its peers see it: shares, release times, repairs, and when it plans."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, PlanningRouter, Route, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.routers.gwtf_iteration import SETTLED_S, IterationRouter
from gwtf_p2p.protocol.schedule.iteration_plan import make_plan
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.flow.problems import record

A, B = PeerId("a"), PeerId("b")
NOBODY: frozenset[PeerId] = frozenset()


def records() -> list[StageRecord]:
    """Data peers a and b, stages {p, q} and {r, s}."""
    stage_peers = [record(n, k, 2, s) for n, k, s in (("p", 1, 0.1), ("q", 1, 0.2), ("r", 2, 0.1), ("s", 2, 0.2))]
    return [record("a", 0, 2), record("b", 0, 2), *stage_peers]


def view_of(peers: list[StageRecord]) -> NetworkView:
    return NetworkView.of(peers, 2, 1_000_000)


def router_of(me: PeerId, peers: list[StageRecord]) -> IterationRouter:
    router = IterationRouter(me, seed=1)
    router.observe_view(view_of(peers), 0.0)
    return router


def plan(router: IterationRouter, without: frozenset[PeerId] = NOBODY, now: float = 0.0) -> IterationPlan | None:
    """Make the plan that is asked for, if any."""
    request = router.planning(without, now)
    if request is None:
        return None
    made = make_plan(request)
    router.planned(made)
    return made


def ask(
    router: IterationRouter, owner: PeerId, index: int, now: float, excluding: frozenset[PeerId] = NOBODY
) -> Route | NoRoute:
    microbatch = MicrobatchId(owner, 0, index)
    return router.route(RouteRequest(microbatch, owner, Stage(1), Stage(2), excluding, is_new=True), now)


def test_it_waits_for_its_first_plan_and_says_so() -> None:
    router = router_of(A, records())
    assert isinstance(router, PlanningRouter)
    answer = ask(router, A, 0, 0.0)
    assert isinstance(answer, NoRoute) and "planning" in answer.reason
    assert plan(router) is not None
    assert isinstance(ask(router, A, 0, 0.0), Route)


def test_equal_views_lead_to_one_plan_of_which_each_takes_its_share() -> None:
    one, other = router_of(A, records()), router_of(B, list(reversed(records())))
    made = plan(one)
    assert made is not None and made == plan(other)
    for router, owner in ((one, A), (other, B)):
        first = ask(router, owner, 0, 0.0)  # the iteration begins; its flows may be for later
        answers = [first if isinstance(first, Route) else ask(router, owner, 0, 100.0), ask(router, owner, 1, 100.0)]
        got = [answer.peers for answer in answers if isinstance(answer, Route)]
        assert got == [flow.stage_peers for flow in made.share_of(owner)]


def test_a_microbatch_leaves_at_its_time_and_the_asker_is_told_when() -> None:
    alone = [record("a", 0, 2), record("p", 1, 1, 0.5), record("r", 2, 1, 0.1)]
    router = router_of(A, alone)
    made = plan(router)
    assert made is not None
    assert isinstance(ask(router, A, 0, 10.0), Route)
    release_s = made.flows[1].release_s
    assert release_s > 0.1, "the one stage peer of stage 1 is busy with the first"
    early = ask(router, A, 1, 10.0 + release_s / 2)
    assert isinstance(early, NoRoute) and early.retry_s is not None and abs(early.retry_s - release_s / 2) < 1e-9
    assert isinstance(ask(router, A, 1, 10.0 + release_s), Route)


def handed_on(router: IterationRouter, index: int, by: str, now: float) -> None:
    """The router hears that a stage peer of stage 1 has handed on a microbatch of data peer a."""
    router.observe_hop(HopObservation(MicrobatchId(A, 0, index), A, PeerId(by), Stage(1), False, 0.1, ""), now)


def slow_by_its_record() -> tuple[IterationRouter, list[float]]:
    """A router whose one stage peer of stage 1 is forecast to need 5 s; two of its microbatches are on their way, as planned.
    Returns the planned releases too."""
    router = router_of(A, [record("a", 0, 4), record("p", 1, 1, 5.0), record("r", 2, 1, 0.1)])
    made = plan(router)
    assert made is not None
    releases_s = [flow.release_s for flow in made.flows]
    for index in (0, 1):
        assert isinstance(ask(router, A, index, releases_s[index]), Route)
    assert releases_s[1] < 1.0 < 5.0 < releases_s[2]
    return router, releases_s


def test_nothing_waits_at_its_origin_while_its_first_stage_peer_is_seen_to_be_idle() -> None:
    router, _ = slow_by_its_record()
    assert isinstance(ask(router, A, 2, 1.0), NoRoute)
    handed_on(router, 0, "p", 1.0)
    assert isinstance(ask(router, A, 2, 1.0), NoRoute), "the other one is there still"
    handed_on(router, 1, "p", 1.5)
    assert isinstance(ask(router, A, 2, 1.5), Route), "forecast to take 5 s, it took half a second"
    assert isinstance(ask(router, A, 3, 1.5), NoRoute)


def test_a_plan_that_is_ahead_is_followed_at_the_rate_that_is_seen() -> None:
    router, releases_s = slow_by_its_record()
    handed_on(router, 0, "p", 1.0)
    handed_on(router, 1, "p", releases_s[2] / 10)
    assert isinstance(ask(router, A, 2, releases_s[2] / 10), Route)
    answer = ask(router, A, 3, releases_s[2] / 10)
    assert isinstance(answer, NoRoute) and answer.retry_s is not None
    assert abs(answer.retry_s - (releases_s[3] - releases_s[2]) / 10) < 1e-6


def test_a_plan_that_is_on_time_is_kept_to_the_letter() -> None:
    router, releases_s = slow_by_its_record()
    assert isinstance(ask(router, A, 2, releases_s[2]), Route)
    handed_on(router, 0, "p", releases_s[2] + 0.1)
    handed_on(router, 1, "p", releases_s[2] + 0.2)
    answer = ask(router, A, 3, releases_s[2] + 0.2)
    assert isinstance(answer, NoRoute) and answer.retry_s is not None
    assert abs(answer.retry_s - (releases_s[3] - releases_s[2] - 0.2)) < 1e-6


def test_a_stage_peer_that_is_lost_is_not_waited_for() -> None:
    router, _ = slow_by_its_record()
    for index in (0, 1):
        lost = HopObservation(MicrobatchId(A, 0, index), A, PeerId("p"), Stage(1), False, None, "lost")
        router.observe_hop(lost, 1.0)
    assert isinstance(ask(router, A, 2, 1.0), NoRoute), "what has not been handed on is no sign of speed"


def test_an_excluded_stage_peer_is_avoided_and_the_rest_of_the_flow_stays() -> None:
    router = router_of(A, records())
    made = plan(router)
    assert made is not None
    first, second = made.share_of(A)[0].stage_peers
    router.observe_view(view_of([replace(r, flows=made.published_by(r.peer)) for r in records()]), 1.0)
    answer = ask(router, A, 0, 1.0, frozenset({first}))
    assert isinstance(answer, Route)
    assert answer.peers == (({"p", "q"} - {first}).pop(), second)


def test_peers_that_come_or_go_are_planned_for_at_once_and_changed_times_are_not_waited_for() -> None:
    router = router_of(A, records())
    plan(router)
    assert isinstance(ask(router, A, 0, 0.0), Route)
    slower = [record("p", 1, 2, 0.3, sequence_number=1) if r.peer == "p" else r for r in records()]
    router.observe_view(view_of(slower), 1.0)
    next_one = RouteRequest(MicrobatchId(A, 1, 0), A, Stage(1), Stage(2), is_new=True)
    assert isinstance(router.route(next_one, 1.0), Route), "the old plan serves"
    revised = plan(router, frozenset({PeerId("p")}), 1.5)
    assert revised is not None and revised.is_revision
    assert Counter(stage_peer for flow in revised.flows for stage_peer in flow.stage_peers)["p"] == 0


def test_data_peers_whose_plans_differ_agree_on_that_of_the_next_iteration() -> None:
    """One has not heard of a stage peer when it plans the first iteration; by its end both have heard of everything."""
    routers = {A: router_of(A, records()), B: router_of(B, [r for r in records() if r.peer != "s"])}
    for owner, router in routers.items():
        plan(router)
        ask(router, owner, 0, 0.0)
    told = [replace(r, flows=routers[r.peer].flows[1], flows_iteration=0) if r.peer in routers else r for r in records()]
    silent = [replace(r, flows=(), flows_iteration=-1) if r.peer == B else r for r in told]
    routers[A].observe_view(view_of(silent), 1.0)
    assert plan(routers[A], now=1.0) is None, "not all have said what they do"
    routers[A].observe_view(view_of(told), 1.5)
    assert plan(routers[A], now=1.5) is None, "one may be about to follow the other"
    made = plan(routers[A], now=1.5 + SETTLED_S)
    assert made is not None and not made.is_revision, "in the first iteration, not only in the second"


def test_nothing_is_planned_while_nothing_has_changed_and_the_search_ends() -> None:
    router = router_of(A, [r for r in records() if r.peer != B])
    jobs = 0
    for iteration in range(12):
        flows = router.plan[0].published_by(A) if router.plan[0] is not None else ()
        mine = [replace(r, flows=flows, sequence_number=iteration) for r in records() if r.peer != B]
        router.observe_view(view_of(mine), float(iteration))
        jobs += plan(router, now=float(iteration)) is not None
        router.route(RouteRequest(MicrobatchId(A, iteration, 0), A, Stage(1), Stage(2), is_new=True), float(iteration))
        jobs += plan(router, now=float(iteration)) is not None
    assert 1 <= jobs <= 5
    assert router.counts["flows_changed"] == 0


def test_a_stage_peer_that_hands_on_follows_what_is_published_for_this_iteration() -> None:
    router = router_of(A, records())
    made = plan(router)
    assert made is not None
    assert isinstance(ask(router, A, 0, 0.0), Route)
    iteration, flows = router.flows
    assert iteration == 0
    stage_peer = router_of(PeerId("p"), [replace(r, flows=flows, flows_iteration=0) if r.peer == A else r for r in records()])
    assert stage_peer.planning(NOBODY, 0.0) is None, "stage peers follow, they do not plan"
    assert stage_peer.revised(MicrobatchId(A, 0, 0), Stage(2)) == made.share_of(A)[0].stage_peers[1:]
    assert stage_peer.revised(MicrobatchId(A, 1, 0), Stage(2)) == (), "of another iteration nothing is said"


def test_peers_that_are_back_when_an_iteration_begins_are_planned_for_though_they_were_known_before() -> None:
    router = router_of(A, records())
    for iteration in range(14):  # until the search for these peers has ended
        plan(router)
        router.route(RouteRequest(MicrobatchId(A, iteration, 0), A, Stage(1), Stage(2), is_new=True), float(iteration))
        plan(router)
    revised = plan(router, frozenset({PeerId("p")}), 9.0)
    assert revised is not None and revised.is_revision
    router.planning(NOBODY, 9.5)  # p is back; the revision for that is under way when the iteration begins
    next_one = RouteRequest(MicrobatchId(A, 14, 0), A, Stage(1), Stage(2), is_new=True)
    router.route(next_one, 10.0)
    router.planned(None)
    made = plan(router, now=10.0)
    assert made is not None and not made.is_revision
    assert isinstance(router.route(next_one, 10.0), Route)


def publishing(router: IterationRouter, made: IterationPlan) -> None:
    """All data peers are seen to publish their shares of this plan."""
    told = [replace(r, flows=made.published_by(r.peer), flows_iteration=0) if r.stage == 0 else r for r in records()]
    router.observe_view(view_of(told), 0.0)


def test_who_is_lost_meanwhile_is_planned_without_as_soon_as_all_of_its_own_are_back() -> None:
    """The next iteration does not wait for that plan."""
    router, lost = router_of(A, records()), frozenset({PeerId("p")})
    first = plan(router)
    assert first is not None and isinstance(ask(router, A, 0, 0.0), Route)
    publishing(router, first)
    assert plan(router, NOBODY, 0.5) is not None, "the next iteration, with everybody"
    revised = plan(router, lost, 1.0)
    assert revised is not None and revised.is_revision
    publishing(router, revised)
    router.observe_end(MicrobatchId(A, 0, 0), 3.0)
    assert router.planning(lost, 3.0) is None, "one is under way still"
    router.observe_end(MicrobatchId(A, 0, 1), 4.0)
    following = plan(router, lost, 4.0)
    assert following is not None and not following.is_revision
    assert router.planning(lost, 5.0) is None, "once"
    request = RouteRequest(MicrobatchId(A, 1, 0), A, Stage(1), Stage(2), lost, is_new=True)
    answer = router.route(request, 6.0)
    assert isinstance(answer, Route) or answer.retry_s is not None, "it has begun, and may be due later"


def test_in_a_large_swarm_a_plan_is_revised_for_several_changes_at_once() -> None:
    """Every second for two hundred peers; a smaller one at every change, and then from the plan before it."""
    for more, revisions in ((MANY_PEERS, [True, False, True]), (1, [True, True, True])):
        router = router_of(A, [*records(), *(record(f"q{n}", 1, 2, 0.2) for n in range(more))])
        first = plan(router)
        assert isinstance(ask(router, A, 0, 0.0), Route)
        gone = [frozenset({PeerId("p")}), frozenset({PeerId("p"), PeerId("q")}), frozenset({PeerId("p"), PeerId("q")})]
        if more == 1:
            gone[2] |= {PeerId("r")}
        made = [plan(router, without, now) for without, now in zip(gone, (1.1, 1.7, 2.1), strict=True)]
        assert [one is not None for one in made] == revisions
        assert made[-1] is not None and made[-1].revises is (first if more > 1 else made[1])
