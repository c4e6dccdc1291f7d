"""Seeded stories: the protocol's machines train, counted not computed, in virtual time. Without faults, and with good ones."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import Tally
from gwtf_p2p.simulation.world.small_swarm import FORWARD_S, SmallConfig, SmallSwarm, small_swarm


def all_done(swarm: SmallSwarm, iterations: int) -> Tally:
    """Every microbatch of every data peer entered the gradient of every stage once."""
    config = swarm.config
    return Tally(iterations * config.data_peers * config.microbatches, lost=0, double=0)


@pytest.mark.parametrize("data_peers", [1, 2, 3])
def test_trains_without_faults(data_peers: int) -> None:
    swarm = small_swarm(SmallConfig(data_peers=data_peers))
    assert swarm.run(iterations=4) == all_done(swarm, 4)
    assert not swarm.reported("recovery") and not swarm.reported("peer_lost") and not swarm.reported("average_failed")


def test_without_faults_no_computation_is_wasted() -> None:
    swarm = small_swarm(SmallConfig(data_peers=2))
    swarm.run(iterations=3)
    wasted = [report.fields["wasted_s"] for _, report, _ in swarm.reported("stepped")]
    assert wasted and max(wasted) < 1e-9  # type: ignore[type-var, operator]


def test_a_full_stage_peer_answers_busy_and_nothing_is_lost() -> None:
    swarm = small_swarm(SmallConfig(stage_peers=1, microbatches=8, capacity=2))
    assert swarm.run(iterations=2) == all_done(swarm, 2)


def test_a_stage_peer_with_little_memory_takes_no_more_than_it_can_keep() -> None:
    """What is kept for exact recovery until the commit counts, so the others of the stage get the rest."""
    swarm = small_swarm(SmallConfig(stages=1, stage_peers=2, microbatches=8, capacity=8, memory_microbatches=4))
    most: dict[PeerId, int] = {}
    before = swarm.world.on_event
    assert before is not None

    def watch(peer: PeerId, event: object, now: float) -> None:
        before(peer, event, now)  # type: ignore[arg-type]
        most[peer] = max(most.get(peer, 0), len(swarm.world.peers[peer].machine.ctx.held))

    swarm.world.on_event = watch
    assert swarm.run(iterations=2) == all_done(swarm, 2)
    assert [most[peer] for peer in swarm.stage_peers] == [4, 4]


def test_a_stage_without_memory_for_an_iteration_says_so() -> None:
    swarm = small_swarm(SmallConfig(stages=1, stage_peers=1, microbatches=8, capacity=8, memory_microbatches=4))
    with pytest.raises(AssertionError, match="stuck"):
        swarm.run(iterations=1, deadline_s=30.0)
    assert swarm.reported("memory_full")


def test_a_newcomer_catches_up_while_the_others_train_on() -> None:
    swarm = small_swarm(SmallConfig(stage_peers=3), [Fault("restart", PeerId("relay_2_1"), at_s=3.5, for_s=0.1, fresh=True)])
    assert swarm.run(iterations=8) == all_done(swarm, 8)
    (_, _, caught_up_at), *_ = swarm.reported("caught_up")
    steps = [at for who, r, at in swarm.reported("stepped") if who == "data_0"]
    longest = max(b - a for a, b in pairwise(steps))
    assert sum(at < caught_up_at for at in steps) < 8
    assert longest < 3.0, "nobody waits for the download"
    newcomer = swarm.world.peers[PeerId("relay_2_1")].machine
    assert newcomer.membership.published_state is PeerState.ONLINE and newcomer.accounts.useful_s > 0, "and works afterwards"


def test_a_newcomer_whose_donor_dies_asks_again() -> None:
    """Its download takes seconds; one of two donors is killed in the middle, then the other one freezes."""
    swarm = small_swarm(
        SmallConfig(stage_peers=4),
        [
            Fault("restart", PeerId("relay_2_3"), at_s=3.5, for_s=0.1, fresh=True),
            Fault("kill", PeerId("relay_2_0"), at_s=3.68),
            Fault("freeze", PeerId("relay_2_1"), at_s=3.69),
        ],
    )
    assert swarm.run(iterations=8) == all_done(swarm, 8)
    assert any(who == "relay_2_3" for who, _, _ in swarm.reported("caught_up"))


def test_a_stage_peer_that_drains_finishes_what_it_has_and_nobody_notices() -> None:
    swarm = small_swarm(SmallConfig(), [Fault("drain", PeerId("relay_2_1"), at_s=2.0)])
    assert swarm.run(iterations=4) == all_done(swarm, 4)
    (_, _, asked_at), (_, _, left_at) = swarm.reported("draining")[0], swarm.reported("drained")[0]
    assert not swarm.reported("recovery") and not swarm.reported("average_failed")
    injected = [at for who, _, at in swarm.reported("stepped") if who == "relay_2_1"]
    assert asked_at < left_at == max(injected), "it leaves when what it has counted is committed"


def test_an_idle_stage_peer_drains_at_once() -> None:
    swarm = small_swarm(SmallConfig(stage_peers=3, microbatches=1), [Fault("drain", PeerId("relay_2_2"), at_s=1.55)])
    swarm.run(iterations=3)
    (_, _, asked_at), (_, _, left_at) = swarm.reported("draining")[0], swarm.reported("drained")[0]
    assert left_at - asked_at < 0.01


def test_a_data_peer_that_drains_finishes_its_iteration() -> None:
    swarm = small_swarm(SmallConfig(data_peers=2), [Fault("drain", PeerId("data_0"), at_s=2.0)])
    tally = swarm.run(iterations=4)
    assert swarm.reported("drained") and tally.lost == 0
    assert all_done(swarm, 4).done > tally.done >= 4 * 4, "the other one goes on alone"


def test_a_stage_peer_that_becomes_ten_times_slower_is_not_taken_for_dead() -> None:
    swarm = small_swarm(SmallConfig(), [Fault("slow", PeerId("relay_2_1"), at_s=2.0, factor=10.0)])
    assert swarm.run(iterations=4) == all_done(swarm, 4)
    assert swarm.faults.fired and not swarm.reported("peer_lost") and not swarm.reported("recovery")


def test_equal_seeds_give_equal_runs() -> None:
    def story() -> list[object]:
        script = [Fault("kill", PeerId("relay_2_1"), at_s=1.9), Fault("blink", PeerId("relay_1_0"), at_s=2.5, for_s=2.0)]
        swarm = small_swarm(SmallConfig(data_peers=2, speeds=(1.0, 2.0), seed=3), script)
        swarm.run(iterations=4)
        return [(who, report.name, at) for who, report, at in swarm.reports]

    assert story() == story()


def test_iterations_are_not_slowed_by_waiting() -> None:
    """Four microbatches through three stages of two stage peers each: compute and transfers, no timer, no retry."""
    swarm = small_swarm(SmallConfig())
    swarm.run(iterations=4)
    steps = [at for who, _, at in swarm.reported("stepped") if who == "data_0"]
    one_trip_s = 3 * 3 * FORWARD_S + 8 * 0.03
    assert all(b - a < 2 * one_trip_s for a, b in pairwise(steps))
