"""Copies of a stage that are averaged every few iterations: what is lost with one, what is not, and when they are equal again.

That copies are equal where the run says so is checked at the end of every simulated run (`Invariants`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import InvariantError, Tally
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

EVERY = 4
BASE = SmallConfig(stages=2, replica_sync=EVERY)


def copies_of(swarm: SmallSwarm, stage: int) -> set[str]:
    peers = [p for p in swarm.world.peers.values() if p.alive and p.machine.ctx.stage == Stage(stage)]
    return {swarm.world.weights.copies.of(p, p.machine.participant.weights) for p in peers}


def everything(swarm: SmallSwarm, iterations: int) -> Tally:
    return Tally(iterations * swarm.config.data_peers * swarm.config.microbatches, lost=0, double=0)


def test_copies_differ_in_between_and_are_equal_after_each_average() -> None:
    for iterations, number in ((EVERY - 1, 2), (EVERY, 1), (EVERY + 1, 2), (2 * EVERY, 1)):
        swarm = small_swarm(replace(BASE, iterations=iterations + EVERY))
        assert swarm.run(iterations) == everything(swarm, iterations)
        at = {p.machine.participant.weights for p in swarm.world.peers.values()}
        if at == {iterations}:  # the last peers to be done may find the first ones further
            assert len(copies_of(swarm, 1)) == number, iterations


def test_the_last_iteration_averages_whatever_its_number() -> None:
    swarm = small_swarm(replace(BASE, iterations=EVERY + 1))
    swarm.run(EVERY + 1)
    assert len(copies_of(swarm, 1)) == len(copies_of(swarm, 2)) == 1


def test_averages_carry_a_number_but_for_each_last() -> None:
    """Two members send what they average twice: a gradient of 4 MB each time, or a copy of 16 MB once and 4 bytes else."""
    sent = {}
    for every in (0, EVERY):
        swarm = small_swarm(replace(BASE, replica_sync=every, iterations=2 * EVERY))
        swarm.run(2 * EVERY)
        sent[every] = swarm.world.rounds.bytes_sent
    assert sent[0] == 2 * EVERY * 2 * 2 * 4_000_000
    assert sent[EVERY] == 2 * 2 * 2 * (16_000_000 + 4 * (EVERY - 1))


@pytest.mark.parametrize("kind", ["kill", "freeze", "restart"])
@pytest.mark.parametrize("iteration", range(1, EVERY + 1))
def test_a_copy_is_lost_and_no_microbatch(kind: str, iteration: int) -> None:
    """Whatever is between two averages when it happens; the loss is told in steps, less than a whole round of them."""
    swarm = small_swarm(replace(BASE, stage_peers=3))
    swarm.run(iteration)
    told_at = swarm.world.kernel.now
    swarm.inject(Fault(kind, PeerId("relay_1_1"), at_s=told_at + 0.3, for_s=0.5))
    assert swarm.run(3 * EVERY) == everything(swarm, 3 * EVERY)
    assert swarm.faults.fired
    lost = [report for _, report, _ in swarm.reported("peer_lost") if report.fields["peer"] == "relay_1_1"]
    assert lost and all(int(str(report.fields.get("steps_lost", 0))) < EVERY for report in lost)


def test_how_many_steps_are_lost_is_told() -> None:
    swarm = small_swarm(replace(BASE, stage_peers=3))
    swarm.run(2)
    swarm.world.kill(PeerId("relay_1_1"))
    swarm.run(EVERY)
    told = [report.fields.get("steps_lost") for _, report, _ in swarm.reported("peer_lost")]
    assert told and {2, 3} >= {*told}


def test_a_newcomer_has_the_copy_of_one_donor_and_is_equal_after_the_next_average() -> None:
    swarm = small_swarm(replace(BASE, stage_peers=3), [Fault("restart", PeerId("relay_1_1"), 2.5, for_s=0.3, fresh=True)])
    assert swarm.run(EVERY - 1) == everything(swarm, EVERY - 1)
    newcomer = swarm.world.peers[PeerId("relay_1_1")]
    assert not newcomer.machine.participant.out_of_step and swarm.reported("catching_up")
    swarm.run(2 * EVERY)
    assert newcomer.machine.participant.weights >= 2 * EVERY


def lose_stage_1(swarm: SmallSwarm) -> None:
    for number in range(swarm.config.stage_peers):
        swarm.world.kill(PeerId(f"relay_1_{number}"))
    swarm.world.kernel.after(1.0, lambda: swarm.faults.restart(PeerId("relay_1_0"), fresh=False))


def test_a_run_goes_back_to_a_version_at_which_copies_were_equal() -> None:
    swarm = small_swarm(BASE)
    swarm.run(EVERY + 2)
    lose_stage_1(swarm)
    swarm.run(2 * EVERY)
    (_, report, _) = swarm.reported("going_back")[0]
    assert report.fields["version"] == EVERY


def test_what_is_written_are_versions_at_which_copies_are_equal() -> None:
    """Also by who leaves in between: the disks of a whole run hold nothing else."""
    swarm = small_swarm(replace(BASE, stage_peers=3, checkpoint_every=2))
    swarm.run(EVERY + 1)
    swarm.world.drain(PeerId("relay_1_1"))
    swarm.run(2 * EVERY + 1)
    written = [set(peer.evaluations) for peer in swarm.world.peers.values()]
    assert written and all(versions <= {EVERY, 2 * EVERY} for versions in written)
    assert written.count({EVERY}) == 1, "that of the one that has left"


def test_one_copy_alone_is_trained_as_ever() -> None:
    """Each step comes at the same moment as without the setting."""
    stepped = []
    for every in (0, EVERY):
        swarm = small_swarm(replace(BASE, stage_peers=1, replica_sync=every, iterations=EVERY))
        assert swarm.run(EVERY) == everything(swarm, EVERY)
        stepped.append([(who, at) for who, _, at in swarm.reported("stepped")])
    assert stepped[0] and stepped[0] == stepped[1]


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_random_faults(first: int) -> None:
    """Nothing of the ledger is lost or counted twice, and copies are equal whenever the run says so."""
    sweep = Sweep(stages=3, stage_peers=3, iterations=4, churn=(0.1, 0.2))
    for seed in range(first, first + 8):
        config = replace(draw_config(seed, sweep), replica_sync=2 + seed % 2)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed


def test_copies_that_differ_where_they_ought_not_are_found() -> None:
    """The check of every run can fail."""
    swarm = small_swarm(BASE)
    swarm.run(EVERY)
    peer = swarm.world.peers[PeerId("relay_1_0")]
    peer.copies[peer.machine.participant.weights] = "another"
    with pytest.raises(InvariantError, match="copies of stage 1 differ"):
        swarm.invariants.check()
