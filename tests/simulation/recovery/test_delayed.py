"""With delayed optimizer steps microbatches of two iterations are under way, and all promises hold as they do without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.recovery_single import CASES, Case, failures, faults_of
from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.stall.watch import waits_for
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

BASE = SmallConfig(stages=3, stage_peers=2, microbatches=4, ahead=1)
EVERY = 23
"""Of the moments of an iteration this sample is tried here; `experiments.recovery_single` tries all."""


def seconds(swarm: SmallSwarm, iterations: int) -> float:
    swarm.run(iterations)
    return swarm.world.kernel.now


def open_at_once(swarm: SmallSwarm) -> set[int]:
    """How many iterations peers hold microbatches of, whenever they compute."""
    found, listener = set[int](), swarm.world.on_event

    def look(peer: PeerId, event: ev.Event, now: float) -> None:
        assert listener is not None
        listener(peer, event, now)
        if isinstance(event, ev.Computed):
            found.add(len({m.iteration for m in swarm.world.peers[peer].machine.ctx.held}))

    swarm.world.on_event = look
    return found


def test_two_iterations_are_under_way_at_once_and_no_more() -> None:
    config = replace(BASE, data_peers=2)
    swarm = small_swarm(config)
    found = open_at_once(swarm)
    tally = swarm.run(8)
    assert max(found) == 2 and (tally.done, tally.lost, tally.double) == (64, 0, 0)
    at_once = small_swarm(replace(config, ahead=0))
    assert max(open_at_once(at_once) if at_once.run(8) else set(), default=1) == 1
    assert seconds(small_swarm(config), 8) < 0.8 * seconds(small_swarm(replace(config, ahead=0)), 8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}-{c.peers}-{c.of}-{'exact' if c.exact else 'fast'}")
def test_one_peer_fails_at_any_moment_of_an_iteration(case: Case) -> None:
    """Gradients, counted by id, are those of a run without faults."""
    faults = faults_of(case, BASE)
    assert not failures(case, BASE, faults[CASES.index(case) % EVERY :: EVERY])


def test_random_faults() -> None:
    sweep = Sweep(stages=3, stage_peers=3, iterations=4, churn=(0.1, 0.2), ahead=1)
    for seed in range(16):
        config = draw_config(seed, sweep)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed


def test_a_run_ends_with_its_last_iteration() -> None:
    """Nothing is computed of the one after it."""
    swarm = small_swarm(replace(BASE, iterations=3))
    assert swarm.run(3).done == 12
    began = [report.fields["microbatch"] for _, report, _ in swarm.reported("injected")]
    assert len(began) == 12


def test_one_that_leaves_does_not_wait_for_what_is_computed_ahead() -> None:
    """It is the last of its stage: nobody else could finish it."""
    swarm = small_swarm(replace(BASE, stage_peers=1), [Fault("drain", PeerId("relay_2_0"), 1.5)])
    swarm.world.kernel.run(lambda: bool(swarm.reported("drained")), 60.0)
    assert [peer for peer, _, _ in swarm.reported("drained")] == ["relay_2_0"]


def test_memory_for_the_iterations_to_come_is_half_of_all() -> None:
    """The one that is being closed finds room, whatever has come of the next one; a fault makes it need all that is left."""
    config = replace(BASE, memory_microbatches=6, microbatches=3, data_peers=1)
    swarm = small_swarm(config, [Fault("kill", PeerId("relay_2_0"), at_event=(1, 20))])
    most, listener = [0], swarm.world.on_event

    def look(peer: PeerId, event: ev.Event, now: float) -> None:
        assert listener is not None
        listener(peer, event, now)
        machine = swarm.world.peers[peer].machine
        if peer in swarm.stage_peers:
            version = machine.participant.version
            most[0] = max(most[0], sum(m.iteration > version for m in machine.ctx.held))

    swarm.world.on_event = look
    assert swarm.run(4).lost == 0 and 0 < most[0] <= 3


def test_a_newcomer_serves_both_iterations() -> None:
    """It has the weights of the version before, too: alone in its stage, it does again what the other one had done."""
    swarm = small_swarm(BASE, [Fault("restart", PeerId("relay_2_0"), 1.5, for_s=0.2), Fault("kill", PeerId("relay_2_1"), 4.0)])
    tally = swarm.run(6)
    assert (tally.lost, tally.double) == (0, 0)


def test_what_the_iteration_at_hand_waits_for_is_said_of_it_alone() -> None:
    """What has not gone ahead yet waits for something to come home, not for a route."""
    swarm = small_swarm(BASE)
    machine = swarm.world.peers[PeerId("data_0")].machine
    assert isinstance(machine, DataPeer)

    def is_ahead() -> bool:
        return machine.injecting.iteration > machine.participant.version and bool(machine.injecting.pending)

    assert swarm.world.kernel.run(is_ahead, 60.0)
    under_way = sum(held.phase is not Phase.DONE for m, held in machine.ctx.held.items() if m.iteration == 0)
    assert waits_for(machine) == f"waits for {under_way} of 4 microbatches to come back"
