"""The network is cut in two: both sides live, and train on where they can; when it is whole again all have the same weights.

Samples; `python -m experiments.recovery_single` does all moments of reunion, `recovery_sweep --partitions 2` draws more.
"""

from __future__ import annotations

import pytest

from experiments.recovery_single import CUTS, MOMENTS, Cut, reunion_failure, reunited
from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm


@pytest.mark.parametrize("first", [0, 8, 16])
def test_random_partitions(first: int) -> None:
    """The network is parted twice, into sides that are drawn. Both live, and train on where they can; then all are one."""
    sweep, fired = Sweep(stages=3, stage_peers=3, iterations=4, churn=(0.0,), partitions=2), 0
    for seed in range(first, first + 8):
        config = draw_config(seed, sweep)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed
        fired += len(swarm.faults.fired)
    assert fired >= 8


def test_both_sides_of_a_partition_train_on_and_one_of_them_is_followed_when_it_ends() -> None:
    """A data peer and a peer of each stage on both sides: they commit the same iterations, each its own."""
    config = SmallConfig(stages=3, stage_peers=2, data_peers=2, microbatches=2)
    side = [PeerId(f"relay_{stage}_1") for stage in (1, 2, 3)]
    swarm = small_swarm(config, [Fault("part", PeerId("data_1"), at_s=2.0, for_s=30.0, others=tuple(side))])
    kernel, world = swarm.world.kernel, swarm.world
    assert kernel.run(lambda: kernel.now > 31.0, 40.0)
    attempts = [world.peers[PeerId(f"data_{k}")].machine.participant.progress.committed for k in (0, 1)]
    assert None not in attempts and attempts[0] != attempts[1]
    tally = swarm.run(4, deadline_s=120.0)
    assert (tally.lost, tally.double) == (0, 0)
    assert len({peer.machine.participant.committed for peer in world.peers.values()}) == 1


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_network_is_whole_again_at_any_moment_of_an_attempt(cut: Cut) -> None:
    for attempt, after_s in MOMENTS[:: 1 if cut.data_peers > 1 else 2]:
        assert not reunion_failure(reunited(cut, attempt, after_s)), (attempt, after_s)
