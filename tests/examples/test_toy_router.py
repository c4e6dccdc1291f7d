"""The toy router of CONTRIBUTING.md: it takes the fastest, leaves out whom it is told to, and a swarm recovers with it."""

from __future__ import annotations

import pytest

from examples.toy_router import FastestRouter
from gwtf_p2p.protocol.core.router import NoRoute, Route, RouteRequest
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


def router(in_flight: int = 2) -> FastestRouter:
    """One that has seen a data peer, two peers of stage 1 and one of stage 2."""
    records = [record(DATA, 0, 0.1), record(SLOW, 1, 0.3), record(QUICK, 1, 0.1), record(ALONE, 2, 0.2)]
    one = FastestRouter(in_flight)
    one.observe_view(NetworkView.of(records, stages=2, microbatch_bytes=1000), now=0.0)
    return one


def request(index: int = 0, excluding: frozenset[PeerId] = frozenset()) -> RouteRequest:
    """The data peer wants to send this microbatch through both stages."""
    return RouteRequest(MicrobatchId(DATA, 0, index), DATA, Stage(1), Stage(2), excluding)


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
    assert way(one.route(request(1), now=1.0))


@pytest.mark.parametrize("moment", [1.0, 1.5, 2.0])
def test_a_swarm_trains_with_it_and_a_killed_peer_costs_nothing(monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    monkeypatch.setattr(small, "RoundRobin", FastestRouter)
    swarm = small.small_swarm(small.SmallConfig(stages=2))
    swarm.inject(Fault("kill", swarm.stage_peers[0], at_s=moment))
    assert swarm.run(iterations=4) == Tally(16, lost=0, double=0)
    assert [fault.kind for _, fault in swarm.faults.fired] == ["kill"]
