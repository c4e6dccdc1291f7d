"""Any single crash at any moment, and random sequences of faults: nothing lost, nothing counted twice, no run stuck.

The samples here are small; `python -m experiments.recovery_single` does all moments, `recovery_sweep` thousands of seeds.
"""

from __future__ import annotations

import pytest

from experiments.recovery_single import CASES, Case, failures, faults_of
from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import Tally
from gwtf_p2p.simulation.world.small_swarm import BYTES_PER_S, MICROBATCH_BYTES, SmallConfig, small_swarm

BASE = SmallConfig(stages=3, stage_peers=2, microbatches=4)
WHOLE = {Case("kill"), Case("freeze"), Case("kill", of="effect")}
"""Every moment is tried; of the other cases a sample."""

EVERY = 7


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}-{c.peers}-{c.of}-{'exact' if c.exact else 'fast'}")
def test_one_peer_fails_at_any_moment_of_an_iteration(case: Case) -> None:
    """Gradients, counted by id, are those of a run without faults (see `experiments.recovery_single`)."""
    faults = faults_of(case, BASE)
    assert len(faults) > 100
    assert not failures(case, BASE, faults if case in WHOLE else faults[CASES.index(case) % EVERY :: EVERY])


@pytest.mark.parametrize("state_microbatches", [240, 300, 450, 900])
def test_a_state_that_takes_longer_than_iterations_is_fetched_once(state_microbatches: int) -> None:
    """What newer weights would take of the line the moments would wait for (see `commit/progress`): all is here as soon as its
    line allows, and of the iterations that are committed meanwhile the averages are enough."""
    joiner, microbatches = PeerId("relay_1_1"), 12
    config = SmallConfig(stages=2, stage_peers=2, microbatches=microbatches, state_microbatches=state_microbatches)
    swarm = small_swarm(config, [Fault("restart", joiner, at_s=4.0, for_s=1.0, fresh=True)])
    assert swarm.run(iterations=10) == Tally(10 * microbatches, lost=0, double=0)
    told = {r.name: (at, r.fields) for who, r, at in swarm.reports if who == joiner and at > 4.0}
    (began, asked), (ended, caught_up) = told["catching_up"], told["caught_up"]
    assert ended - began < state_microbatches * MICROBATCH_BYTES / BYTES_PER_S + 0.1
    assert int(str(caught_up["version"])) > int(str(asked["iteration"])), "iterations were committed meanwhile"
    assert told["stepped"][1]["microbatches"] == microbatches // 2


@pytest.mark.parametrize(("fresh", "away_s", "fetches"), [(False, 0.01, False), (True, 0.01, True), (False, 5.0, True)])
def test_a_restarted_peer_fetches_its_state_only_where_its_disk_lacks_it(fresh: bool, away_s: float, fetches: bool) -> None:
    """It is killed as iteration 1 begins, and comes back in it with its disk, without it, or iterations later."""
    peer = PeerId("relay_1_1")
    swarm = small_swarm(SmallConfig(), [Fault("restart", peer, at_event=(1, 1), for_s=away_s, fresh=fresh)])
    swarm.run(iterations=8)
    assert swarm.faults.fired and swarm.world.peers[peer].machine.membership.serves
    assert (swarm.world.weights.bytes_sent > 0) is fetches


def test_random_faults_where_stages_average_in_rows() -> None:
    """Stages of five, of which no more than two average all with all."""
    sweep = Sweep(stages=2, stage_peers=5, iterations=3, churn=(0.1, 0.2), all_with_all=2)
    asked = set()
    for seed in range(6):
        config = draw_config(seed, sweep)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        swarm.world.rounds.on_done = lambda peer, prepare, since: asked.add((len(prepare.participants), prepare.all_with_all))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed
    assert (5, 2) in asked and all(most == (2 if peers > 2 else 0) for peers, most in asked)


@pytest.mark.parametrize("first", range(0, 48, 16))
def test_random_faults(first: int) -> None:
    """Stage peers are killed, frozen, restarted, blink, drain and become slow; data peers restart and blink."""
    sweep = Sweep(stages=3, stage_peers=3, iterations=4, churn=(0.1, 0.2))
    for seed in range(first, first + 16):
        config = draw_config(seed, sweep)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("for_s", [2.9, 3.4, 3.9, 4.3])
def test_most_of_two_stages_come_back_after_a_commit_without_them(for_s: float, ahead: int) -> None:
    """They have been thought lost, and have not signed; while they believe to serve, nobody could prove that commit."""
    gone = [PeerId(f"relay_{stage}_{i}") for stage in (1, 3) for i in range(2)]
    config = SmallConfig(stages=3, stage_peers=3, microbatches=4, ahead=ahead)
    swarm = small_swarm(config, [Fault("blink", peer, 1.5, for_s=for_s) for peer in gone])
    tally = swarm.run(3, deadline_s=60.0)
    assert (tally.done, tally.lost, tally.double) == (12, 0, 0)


def test_those_that_have_come_since_a_commit_stand_by_it() -> None:
    """They are more than half of a stage, serve at the next iteration and could not sign."""
    sweep = Sweep()
    config = draw_config(694, sweep)
    swarm = small_swarm(config, draw_script(694, config, sweep))
    assert swarm.run(sweep.iterations, deadline_s=300.0).double == 0
