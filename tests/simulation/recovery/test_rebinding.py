"""What waits is handed over to others while peers crash: whatever goes where, and when, nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from random import Random

import pytest

from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.base import PeerMachine
from gwtf_p2p.protocol.transfer import rebinding
from gwtf_p2p.protocol.view.late_binding import Queue
from gwtf_p2p.simulation.world.small_swarm import small_swarm

OFTEN = 0.03
"""How often a peer hands over something, of all events that it hears: far more often than any forecast would have it."""


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> Random:
    """Peers hand over at random, what waits anywhere to anybody."""
    random = Random(0)
    settle = PeerMachine._settle

    def settle_restlessly(self: PeerMachine) -> None:
        if random.random() < OFTEN:
            self.transfers.rebinding.look()
        settle(self)

    def moved(queues: Mapping[PeerId, Queue], newcomers: Mapping[PeerId, Collection[PeerId]]) -> tuple[PeerId, PeerId] | None:
        pairs = [(p, q) for p, others in newcomers.items() for q in others if p != q and queues[p] != queues[q]]
        return random.choice(pairs) if pairs and random.random() < 0.6 else None

    def some_are_new(self: rebinding.Rebinding, waiting: Mapping[PeerId, Collection[object]]) -> dict[PeerId, list[PeerId]]:
        """Others each time, as what is the last of a queue decides."""
        return {peer: [p for p in self.came_at if random.random() < 0.7] for peer, queue in waiting.items() if queue}

    monkeypatch.setattr(PeerMachine, "_settle", settle_restlessly)
    monkeypatch.setattr(rebinding, "moved", moved)
    monkeypatch.setattr(rebinding.Rebinding, "_newcomers", some_are_new)
    return random


@pytest.mark.parametrize("first", [0, 8])
def test_handing_over_at_random_while_peers_crash_loses_nothing_and_counts_nothing_twice(restless: Random, first: int) -> None:
    sweep, rebound = Sweep(stages=3, stage_peers=3, iterations=4, churn=(0.1, 0.2)), 0
    for seed in range(first, first + 8):
        restless.seed(seed)
        config = replace(draw_config(seed, sweep), plans=True)
        swarm = small_swarm(config, draw_script(seed, config, sweep))
        tally = swarm.run(sweep.iterations, deadline_s=3000.0)
        assert tally.double == 0 and (tally.lost == 0 or not config.exact), seed
        rebound += sum(report.name == "rebound" for _, report, _ in swarm.reports)
    assert rebound > 20
