"""The negotiated router in a swarm: flows come from records and messages, microbatches follow them, a crash is mended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.routers.negotiated import NegotiatedRouter
from gwtf_p2p.simulation.run import Simulation
from tests.simulation.stories import simulation, story


def negotiated(folder: Path, **changes: object) -> Simulation:
    run = simulation(story(folder, **{"capacity": 2, "microbatches": 4, **changes}), "negotiated")

    def watch(peer: PeerId, event: ev.Event, now: float) -> None:
        trace(peer, event, now)
        machine = run.world.peers[peer].machine
        if isinstance(machine, StagePeer):
            assert machine.occupancy <= machine.capacity
        router = router_of(run, peer)
        for part in router.negotiator.parts if router.negotiator is not None else ():
            part.side.slots.check()

    trace = run.world.on_event
    assert trace is not None
    run.world.on_event = watch
    return run


def router_of(run: Simulation, peer: str) -> NegotiatedRouter:
    router = run.world.peers[PeerId(peer)].machine.ctx.router
    assert isinstance(router, NegotiatedRouter)
    return router


def routes(run: Simulation) -> list[tuple[str, ...]]:
    """Of every microbatch that is done, filled in as the run goes on."""
    found: list[tuple[str, ...]] = []

    def hear(peer: PeerId, report: ef.Report, now: float) -> None:
        if report.name == "microbatch_done":
            route = report.fields["route"]
            assert isinstance(route, list)
            found.append(tuple(route))

    run.listeners.append(hear)
    return found


def test_flows_are_found_counted_and_followed(tmp_path: Path) -> None:
    run = negotiated(tmp_path, iterations=8)
    done = routes(run)
    outcome = run.run()
    assert outcome.microbatches_lost == outcome.double_counted == 0
    assert outcome.extra["flow_count"] == 4, "two stage peers of capacity 2 in each stage"
    assert 0 < float(outcome.extra["virtual_seconds_to_full_flow"]) < 15
    assert 0 < int(outcome.extra["negotiation_messages"]) < int(outcome.extra["messages"])
    used = Counter(stage_peer for route in done[-16:] for stage_peer in route)
    assert set(used.values()) == {8}, "every stage peer carries its two flows in each of the last four iterations"


def test_records_offer_what_is_left(tmp_path: Path) -> None:
    run = negotiated(tmp_path, iterations=8, microbatches=1)
    run.run()
    view = run.world.peers[PeerId("data_0")].machine.ctx.view
    assert view is not None
    offers = {peer: dict(record.cost_to_sink_us) for peer, record in view.records.items() if record.cost_to_sink_us}
    assert all(set(offer) == {"data_0"} for offer in offers.values())
    assert len(router_of(run, "data_0").negotiator.flows) == 1  # type: ignore[union-attr]


def test_data_peers_share_fairly_what_is_too_little(tmp_path: Path) -> None:
    run = negotiated(tmp_path, iterations=6, data_peers=2, microbatches=8)
    outcome = run.run()
    assert outcome.microbatches_lost == 0
    assert [router_of(run, f"data_{i}").flow_count for i in range(2)] == [2, 2]


@pytest.mark.parametrize("kind", ["kill", "freeze"])
def test_a_lost_stage_peer_is_mended_and_its_flows_move(kind: str, tmp_path: Path) -> None:
    run = negotiated(tmp_path, iterations=10, stage_peers=3)
    fired: list[float] = []

    def fault(peer: PeerId, report: ef.Report, now: float) -> None:
        if report.name == "iteration_begins" and report.fields["iteration"] == 5 and not fired:
            fired.append(now)
            run.world.kernel.at(now + 0.03, lambda: getattr(run.world, kind)(victim))

    victim = PeerId("relay_2_1")
    run.listeners.append(fault)
    done = routes(run)
    outcome = run.run()
    assert fired and outcome.microbatches_lost == outcome.double_counted == 0
    assert sum(outcome.recoveries.values()) > 0
    assert not any(victim in route for route in done[-8:])
    assert router_of(run, "data_0").flow_count == 4
    for name, peer in run.world.peers.items():
        negotiator = router_of(run, name).negotiator
        assert negotiator is not None
        ends = [e.peer for s in (*negotiator.slots, *negotiator.sink_slots) for e in (s.inflow, s.outflow) if e is not None]
        assert not peer.alive or peer.frozen or victim not in ends


def test_equal_seeds_make_equal_traces(tmp_path: Path) -> None:
    one, other = (negotiated(tmp_path, iterations=4).run() for _ in range(2))
    assert one.trace_sha256 == other.trace_sha256
