"""The network is cut in two: both sides live, and train on where they can; when it is whole again all have the same weights.

Samples; `python -m experiments.recovery_sweep --partitions 2` draws more.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm


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


@dataclass(frozen=True)
class Cut:
    """Of so many `peers` in each of so many `stages`, `away` are cut off, and the second data peer where there are two."""

    stages: int
    peers: int
    data_peers: int
    away: int

    @property
    def config(self) -> SmallConfig:
        return SmallConfig(stages=self.stages, stage_peers=self.peers, data_peers=self.data_peers, microbatches=4)

    @property
    def side(self) -> frozenset[PeerId]:
        relays = {f"relay_{k}_{r}" for k in range(1, self.stages + 1) for r in range(self.peers - self.away, self.peers)}
        return frozenset(map(PeerId, relays | ({"data_1"} if self.data_peers > 1 else set())))


CUTS = (Cut(2, 4, 2, 3), Cut(3, 3, 2, 2), Cut(3, 4, 1, 3), Cut(2, 5, 2, 3), Cut(1, 5, 1, 4))


def reunited(cut: Cut, delay_s: float, attempt: int) -> SmallSwarm:
    """Parted at 1.5 s, and whole again so long after the first data peer has opened that attempt without the others: when it
    is prepared, committed or applied here and there."""
    swarm = small_swarm(cut.config)
    world, kernel = swarm.world, swarm.world.kernel
    leading, opened = world.peers[PeerId("data_0")].machine, list[object]()
    assert isinstance(leading, DataPeer)
    assert kernel.run(lambda: kernel.now > 1.5, 10.0)
    world.partition(cut.side)

    def is_open() -> bool:
        under_way = leading.coordinator.under_way.attempt
        if under_way is not None and under_way not in opened and not cut.side & under_way.participants.keys():
            opened.append(under_way)
        return len(opened) >= attempt

    assert kernel.run(is_open, 100.0)
    at_s = kernel.now + delay_s
    assert kernel.run(lambda: kernel.now >= at_s, 200.0)
    world.reunite()
    return swarm


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut.away} of {cut.peers} in {cut.stages}, {cut.data_peers} data peers")
def test_the_network_is_whole_again_at_any_moment_of_an_attempt(cut: Cut, attempt: int) -> None:
    for delay_s in (0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.3):
        swarm = reunited(cut, delay_s, attempt)
        tally = swarm.run(6, deadline_s=300.0)
        assert (tally.lost, tally.double) == (0, 0), delay_s
        where = {(peer.machine.participant.position, peer.machine.ctx.stage): set[str]() for peer in swarm.world.peers.values()}
        for peer in swarm.world.peers.values():
            weights = peer.machine.participant.weights
            where[peer.machine.participant.position, peer.machine.ctx.stage].add(swarm.world.weights.copies.of(peer, weights))
        assert all(len(copies) == 1 for copies in where.values()), (delay_s, where)
