"""What peers have contributed is what was committed, exactly; `Invariants.check` compares it in every simulated run.

The sums of receipts, as data peers keep them, against the shares that stage groups have averaged.
"""

from __future__ import annotations

import pytest

from gwtf_p2p.monitor.own_peer import OwnPeer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.view.contributions import Contribution, Contributions
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import InvariantError
from gwtf_p2p.simulation.world.small_swarm import BACKWARD_S, FORWARD_S, SmallConfig, SmallSwarm, small_swarm

DATA_0 = PeerId("data_0")


def contributions(swarm: SmallSwarm, of: PeerId = DATA_0) -> Contributions:
    peer = swarm.world.peers[of]
    return peer.contributions[peer.machine.participant.weights]


def every_stage_has(swarm: SmallSwarm, iterations: int) -> bool:
    config = swarm.config
    each = iterations * config.data_peers * config.microbatches
    return [contributions(swarm).of_stage(Stage(k)) for k in range(config.stages + 1)] == [each] * (config.stages + 1)


@pytest.mark.parametrize("data_peers", [1, 3])
def test_every_stage_is_credited_with_every_microbatch_once(data_peers: int) -> None:
    swarm = small_swarm(SmallConfig(data_peers=data_peers))
    swarm.run(iterations=3)
    assert every_stage_has(swarm, 3)
    assert {peer for stage, peer in contributions(swarm).of if stage == DATA_STAGE} == {
        PeerId(f"data_{n}") for n in range(data_peers)
    }


def test_seconds_are_those_of_the_credited_microbatches() -> None:
    swarm = small_swarm(SmallConfig(data_peers=1, stage_peers=1))
    swarm.run(iterations=4)
    (done,) = [c for (stage, _), c in contributions(swarm).of.items() if stage == 1]
    each_ms = round((FORWARD_S + BACKWARD_S) * 1000)
    assert done.microbatches > 0 and done.busy_ms % each_ms == 0 and 0 < done.busy_ms <= done.microbatches * each_ms


def loses_stage_2(swarm: SmallSwarm) -> None:
    """All peers of a stage die; the one that comes back has version 1."""
    world, kernel = swarm.world, swarm.world.kernel
    lost = [PeerId("relay_2_0"), PeerId("relay_2_1")]

    def lose() -> None:
        for peer in lost:
            world.kill(peer)
        world.peers[lost[0]].kept, world.peers[lost[1]].kept = [1], []
        kernel.after(1.0, lambda: swarm.faults.restart(lost[0], fresh=False))

    kernel.at(5.0, lose)


def test_what_a_rollback_undoes_is_not_counted_and_what_is_done_again_is_counted_once() -> None:
    swarm = small_swarm(SmallConfig(data_peers=2))
    loses_stage_2(swarm)
    swarm.run(iterations=6)
    assert swarm.reported("going_back"), "the story is about that"
    stepped = sum(int(str(r.fields["microbatches"])) for who, r, _ in swarm.reported("stepped") if who == DATA_0)
    own = contributions(swarm).of[DATA_STAGE, DATA_0].microbatches
    assert every_stage_has(swarm, 6) and own < stepped, "whoever adds up its steps counts what was undone"


def test_what_a_peer_says_of_itself_when_it_leaves_agrees_with_the_ledger() -> None:
    swarm = small_swarm(SmallConfig(data_peers=2))
    loses_stage_2(swarm)
    swarm.run(iterations=6)
    assert swarm.reported("going_back")
    told = {peer: OwnPeer(0.0) for peer in swarm.world.peers}
    for who, report, at in swarm.reported("stepped"):
        told[PeerId(who)].hear({"name": "stepped", **report.fields}, at)
    sums = contributions(swarm).by_peer
    for peer, own in told.items():
        if not peer.startswith("relay_2"):  # those two have started again, and told others in an earlier life
            assert own.committed == sums.get(peer, Contribution()).microbatches, peer


@pytest.mark.parametrize("fresh", [False, True])
def test_a_data_peer_that_starts_again_has_the_sums_of_the_others(fresh: bool) -> None:
    swarm = small_swarm(SmallConfig(data_peers=2), [Fault("restart", PeerId("data_1"), at_s=4.0, for_s=0.5, fresh=fresh)])
    swarm.run(iterations=8)
    machine = swarm.world.peers[PeerId("data_1")].machine
    assert not machine.participant.out_of_step and machine.participant.weights == 8
    assert contributions(swarm, PeerId("data_1")) == contributions(swarm)


def test_sums_that_differ_from_the_averages_are_found() -> None:
    """The check of every run can fail."""
    swarm = small_swarm(SmallConfig())
    swarm.run(iterations=2)
    peer = swarm.world.peers[DATA_0]
    peer.contributions[peer.machine.participant.weights] = Contributions()
    with pytest.raises(InvariantError, match="contributions differ"):
        swarm.invariants.check()
