"""Any single crash at any moment, and random sequences of faults: nothing lost, nothing counted twice, no run stuck.

The samples here are small; `python -m experiments.recovery_sweep` does all moments (`--exhaustive`) and thousands of seeds.
"""

from __future__ import annotations

import pytest

from experiments.recovery_sweep import Sweep, draw_config, draw_script, single_faults
from gwtf_p2p.simulation.small import SmallConfig, small_swarm

CONFIG = SmallConfig(stages=3, relays=2, microbatches=4)
TWO_DATA_PEERS = SmallConfig(stages=3, relays=2, data_peers=2, microbatches=3)
ITERATIONS = 3


@pytest.mark.parametrize(("kind", "every", "offset"), [("kill", 2, 0), ("freeze", 5, 1), ("blink", 6, 2), ("restart", 6, 3)])
def test_one_relay_fails_at_any_event_of_an_iteration(kind: str, every: int, offset: int) -> None:
    """Gradients, counted by id, are those of a run without faults."""
    whole = small_swarm(CONFIG)
    whole.run(ITERATIONS)
    gradients = [whole.invariants.committed(i) for i in range(ITERATIONS)]
    faults = single_faults(CONFIG, kind, iteration=1)[offset::every]
    assert len(faults) > 15
    for fault in faults:
        swarm = small_swarm(CONFIG, [fault])
        swarm.run(ITERATIONS)
        assert [f for _, f in swarm.faults.fired] == [fault], f"did not fire: {fault}"
        assert [swarm.invariants.committed(i) for i in range(ITERATIONS)] == gradients, fault


@pytest.mark.parametrize(("kind", "every"), [("restart", 5), ("blink", 7), ("kill", 7)])
def test_one_data_peer_of_two_fails_at_any_event_of_an_iteration(kind: str, every: int) -> None:
    """Its microbatches of an iteration are in the gradients of all stages or of none."""
    for fault in single_faults(TWO_DATA_PEERS, kind, iteration=1, peers="data")[::every]:
        swarm = small_swarm(TWO_DATA_PEERS, [fault])
        tally = swarm.run(ITERATIONS)
        assert swarm.faults.fired and (tally.lost, tally.double) == (0, 0), fault
        assert ITERATIONS * 3 <= tally.done <= ITERATIONS * 6, fault


@pytest.mark.parametrize("first", range(0, 48, 16))
def test_random_faults(first: int) -> None:
    """Relays are killed, frozen, restarted, blink, drain and become slow; data peers restart and blink."""
    sweep = Sweep(stages=3, relays=3, iterations=4, churn=(0.1, 0.2))
    for seed in range(first, first + 16):
        config = draw_config(seed, sweep)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed
