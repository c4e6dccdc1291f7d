"""Carries out SWARM's rebalancing: every T seconds the peer that the rule names changes its stage.

Who is there is read from the records, as old as they are; each peer measures its queue every second. The mover drains (it
takes nothing new and finishes what it holds, so that its move is not a crash), ends, and starts again in its new stage without
weights: it downloads the stage's state over the lines and catches up like any newcomer. A move that a crash has overtaken is
dropped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.membership.swarm_rebalancing import IN_QUEUE, Move, swarm_move
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.simulation.swarm.build import Swarm

SAMPLE_S = 1.0


@dataclass
class Rebalancing:
    """`moves` counts the peers that have changed their stage. `period_s` 0: never."""

    swarm: Swarm
    period_s: float
    moves: int = 0
    _leaving: dict[PeerId, Stage] = field(default_factory=dict)
    _queued: Counter[PeerId] = field(default_factory=Counter)
    _samples: int = 0

    def start(self) -> None:
        if self.period_s > 0:
            self.swarm.world.kernel.after(self.period_s, self._look)
            self.swarm.world.kernel.after(SAMPLE_S, self._sample)

    def _sample(self) -> None:
        for peer in self.swarm.world.peers.values():
            if peer.alive:
                self._queued[peer.id] += sum(held.phase in IN_QUEUE for held in peer.machine.ctx.held.values())
        self._samples += 1
        self.swarm.world.kernel.after(SAMPLE_S, self._sample)

    def _look(self) -> None:
        world = self.swarm.world
        lengths = {peer: queued / max(1, self._samples) for peer, queued in self._queued.items()}
        self._queued.clear()
        self._samples = 0
        move = swarm_move(world.directory.view(world.kernel.now), lengths)
        self._leaving = {p: stage for p, stage in self._leaving.items() if world.peers[p].alive}
        if isinstance(move, Move) and not self._leaving:
            peer = world.peers[move.peer]
            if peer.alive and not peer.frozen and peer.machine.membership.published_state is PeerState.ONLINE:
                self._leaving[move.peer] = move.to_stage
                world.drain(move.peer)
        world.kernel.after(self.period_s, self._look)

    def drained(self, peer: PeerId) -> None:
        """To be called for every report of it; restarts the peer where it belongs now."""
        stage = self._leaving.pop(peer, None)
        if stage is None:
            return
        self.moves += 1
        # The report comes out of the peer's own machine: let it finish what it is doing.
        self.swarm.world.kernel.after(0.0, lambda: self._move(peer, stage))

    def move(self, peer: PeerId, stage: Stage) -> None:
        """What a peer's own machine has decided (`protocol/membership/rebalancing`)."""
        self.moves += 1
        self.swarm.world.kernel.after(0.0, lambda: self._move(peer, stage))

    def _move(self, peer: PeerId, stage: Stage) -> None:
        if self.swarm.world.peers[peer].alive:
            self.swarm.world.kill(peer)
        self.swarm.move(peer, stage)
        self.swarm.restart(peer)
