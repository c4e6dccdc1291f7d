"""Relays that crash and come back, as the scenario's probabilities and the seed plan it.

When an iteration begins, each crashed relay comes back with the rejoin probability, and for each relay it is decided whether
it crashes in this iteration and at which part of it. The moment is turned into a time with the length of the iteration
before (of the first: its lower bound), so a crash can fall a little past the end. The plan is the seed's alone (`draw`), so
all arms of a comparison have the same plan, iteration by iteration.

A crash is a killed process: its connections break, what it held is gone. It comes back as a newly started program without
weights, downloads the stage's state over the lines, catches up and serves (`protocol/membership`). A relay is spared when
no other of its stage is up and in step: the paper assumes at least one live peer per stage (FIELD section 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.records import PeerState
from gwtf_p2p.simulation.build import Swarm
from gwtf_p2p.simulation.draw import draw_fate


@dataclass
class Churn:
    """`crashes`, `returns` and `spared` count what has happened."""

    swarm: Swarm
    first_length_s: float
    crashes: int = 0
    returns: int = 0
    spared: int = 0
    _began_at: list[float] = field(default_factory=list)

    def iteration_begins(self, iteration: int, now: float) -> None:
        """To be called for every report of it; only the first counts."""
        spec = self.swarm.scenario.churn
        if iteration != len(self._began_at) or not (spec.crash_probability or spec.rejoin_probability):
            return
        length_s = now - self._began_at[-1] if self._began_at else self.first_length_s
        self._began_at.append(now)
        for peer, drawn in self.swarm.drawn.items():
            if drawn.stage == DATA_STAGE:
                continue
            fate = draw_fate(spec, self.swarm.seed, peer, iteration)
            if fate.rejoins and not self.swarm.world.peers[peer].alive:
                self._come_back(peer)
            if fate.crashes:
                self.swarm.world.kernel.after(fate.moment * length_s, lambda p=peer: self._crash(p))  # type: ignore[misc]

    def _crash(self, peer: PeerId) -> None:
        peers, stage = self.swarm.world.peers, self.swarm.drawn[peer].stage
        if not peers[peer].alive:
            return
        others = [p for p in peers.values() if p.id != peer and p.machine.ctx.stage == stage and p.alive]
        if any(other.machine.published_state is PeerState.ONLINE for other in others):
            self.crashes += 1
            self.swarm.world.kill(peer)
        else:
            self.spared += 1

    def _come_back(self, peer: PeerId) -> None:
        self.returns += 1
        self.swarm.restart(peer)
