"""Gradients that are not finite, in whole swarms: the step is skipped everywhere, and too many of them pause the run."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.stall.watch import StallWatch, Wanted
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

DATA, ONE, TWO = PeerId("data_0"), PeerId("relay_1_0"), PeerId("relay_2_1")
ENOUGH = 3


def skipped(swarm: SmallSwarm) -> dict[int, int]:
    """How many peers have told of each step as skipped."""
    found: dict[int, int] = {}
    for _, report, _ in swarm.reported("stepped"):
        if report.fields["skipped"]:
            iteration = int(str(report.fields["iteration"]))
            found[iteration] = found.get(iteration, 0) + 1
    return found


@pytest.mark.parametrize("work", [ev.Work.FORWARD, ev.Work.BACKWARD])
def test_a_step_that_is_not_finite_at_one_peer_is_skipped_by_all_and_training_goes_on(work: ev.Work) -> None:
    swarm = small_swarm(SmallConfig(stages=2, iterations=6))
    swarm.world.computers.spoils = lambda peer, done, m: peer == TWO and done is work and m.iteration == 2
    swarm.run(6)
    assert skipped(swarm) == {2: len(swarm.world.peers)}
    assert not swarm.reported("peer_barred") and not swarm.reported("out_of_step")


def test_what_is_done_again_by_another_peer_is_not_skipped() -> None:
    """The peer that found no numbers dies before the average; the one that takes its place finds some."""
    swarm = small_swarm(SmallConfig(stages=2, iterations=4), [Fault("kill", TWO, at_event=(1, 14))])
    swarm.world.computers.spoils = lambda peer, done, m: peer == TWO and m.iteration == 1
    swarm.run(4)
    assert not skipped(swarm)


def test_a_coordinator_that_dies_while_a_step_is_skipped_leaves_all_of_one_mind() -> None:
    for moment in range(20, 60, 4):
        swarm = small_swarm(SmallConfig(stages=2, data_peers=2, iterations=4), [Fault("kill", DATA, at_event=(1, moment))])
        swarm.world.computers.spoils = lambda peer, done, m: peer == TWO and m.iteration == 1
        swarm.run(4)
        told = {r.fields["skipped"] for _, r, _ in swarm.reported("stepped") if r.fields["iteration"] == 1}
        assert len(told) == 1, moment


def test_too_many_in_a_row_pause_the_run_until_the_data_peer_is_started_again() -> None:
    swarm = small_swarm(SmallConfig(stages=2, max_skipped_steps=ENOUGH))
    swarm.world.computers.spoils = lambda peer, done, m: peer == TWO and m.iteration >= 2
    kernel = swarm.world.kernel
    kernel.run(lambda: False, 60.0)
    versions = {peer.machine.participant.version for peer in swarm.world.peers.values()}
    assert versions == {2 + ENOUGH}
    watch = StallWatch(Wanted(1, 2), 600.0)
    for peer in swarm.world.peers.values():
        watch.look(peer.machine, kernel.now)
        assert "last 3 steps were skipped" in watch.text and TWO[-6:] in watch.text
    swarm.world.computers.spoils = lambda peer, done, m: False
    swarm.faults.fire(Fault("restart", DATA, at_s=kernel.now, for_s=1.0))
    swarm.run(2 + ENOUGH + 3)
