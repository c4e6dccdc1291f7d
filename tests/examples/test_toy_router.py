"""The toy router of CONTRIBUTING.md: it takes the fastest, leaves out whom it is told to, and a swarm recovers with it."""

from __future__ import annotations

import pytest

from examples.toy_router import FastestConfig, FastestRouter
from gwtf_p2p.protocol.core.router import NoRoute, Route, Router, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, Timing
from gwtf_p2p.simulation.world import small_swarm as small
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import Tally

DATA, QUICK, SLOW, ALONE = (PeerId(name) for name in ("data", "quick", "slow", "alone"))


def record(peer: PeerId, stage: int, seconds: float) -> StageRecord:
    """An online peer whose forward takes so long."""
    return StageRecord(peer, RunId("r"), Stage(stage), PeerState.ONLINE, capacity=2, forward=Timing(seconds, 1, 0.0))


def router(in_flight: int = 0) -> FastestRouter:
    """One that has seen a data peer, two peers of stage 1 and one of stage 2."""
    records = [record(DATA, 0, 0.1), record(SLOW, 1, 0.3), record(QUICK, 1, 0.1), record(ALONE, 2, 0.2)]
    one = FastestRouter(FastestConfig(in_flight))
    one.observe_view(NetworkView.of(records, stages=2, microbatch_bytes=1000), now=0.0)
    return one


def request(index: int = 0, excluding: frozenset[PeerId] = frozenset(), is_new: bool = True) -> RouteRequest:
    """The data peer wants to send this microbatch through both stages; not new: once more."""
    return RouteRequest(MicrobatchId(DATA, 0, index), DATA, Stage(1), Stage(2), excluding, is_new=is_new)


def way(answer: Route | NoRoute) -> tuple[PeerId, ...]:
    """Nobody, where there is no route."""
    return answer.peers if isinstance(answer, Route) else ()


def test_the_fastest_peer_of_each_stage_is_taken() -> None:
    assert way(router().route(request(), now=0.0)) == (QUICK, ALONE)


def test_an_excluded_peer_is_left_out_and_a_stage_without_peers_has_no_route() -> None:
    assert way(router().route(request(excluding=frozenset({QUICK})), now=0.0)) == (SLOW, ALONE)
    assert isinstance(router().route(request(excluding=frozenset({ALONE})), now=0.0), NoRoute)


def test_no_more_are_injected_than_may_be_in_flight() -> None:
    one = router(in_flight=1)
    assert way(one.route(request(0), now=0.0))
    assert not way(one.route(request(1), now=0.0))
    one.observe_end(MicrobatchId(DATA, 0, 0), now=1.0)
    assert way(one.route(request(0, is_new=False), now=1.0)), "a peer that had done its part is lost: that is done again"
    assert way(one.route(request(1), now=1.0)), "and takes no place in flight"


def test_no_limit_is_zero_and_less_is_refused() -> None:
    one = router(in_flight=0)
    assert all(way(one.route(request(index), now=0.0)) for index in range(50))
    with pytest.raises(ValueError, match="in_flight"):
        FastestConfig(in_flight=-1)


@pytest.mark.parametrize("in_flight", [0, 1, 3])
@pytest.mark.parametrize("moment", [1.0, 1.5, 2.4, 2.7, 3.0, 3.3])
def test_a_swarm_trains_with_it_and_a_killed_peer_costs_nothing(moment: float, in_flight: int) -> None:
    """Early moments are in a forward or a backward, late ones after a microbatch's end: what was done is done again."""

    def own(_: int) -> Router:
        return FastestRouter(FastestConfig(in_flight))

    swarm = small.small_swarm(small.SmallConfig(stages=2, router=own))
    swarm.inject(Fault("kill", swarm.stage_peers[0], at_s=moment))
    assert swarm.run(iterations=4) == Tally(16, lost=0, double=0)
    assert [fault.kind for _, fault in swarm.faults.fired] == ["kill"]
