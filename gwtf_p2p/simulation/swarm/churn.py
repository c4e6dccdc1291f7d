"""Stage peers that crash and come back, as probabilities and the seed plan it: one plan for the simulator and for real
processes.

When an iteration begins, each crashed stage peer comes back with the rejoin probability, and for each stage peer it is decided
whether it crashes in this iteration and at which part of it. The moment is turned into a time with the length of the iteration
before (of the first: what the caller expects), so a crash can fall a little past the end. The plan is the seed's alone
(`draw`), so all arms of a comparison have the same plan, iteration by iteration.

A crash is a killed process: its connections break, what it held is gone. It comes back as a newly started program without
weights, downloads the stage's state, catches up and serves (`protocol/membership`). A stage peer is spared when no other of its
stage is up and in step: the paper assumes at least one live peer per stage (GWTF, arXiv 2509.21221).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol, TypedDict

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.simulation.scenario.draw import draw_fate
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec

if TYPE_CHECKING:
    from gwtf_p2p.simulation.swarm.build import Swarm


class StagePeers(Protocol):
    """Those that may crash, and what a plan is acted out with."""

    def stages(self) -> Mapping[PeerId, Stage]:
        """Every stage peer's stage, whatever its state."""

    def is_down(self, peer: PeerId) -> bool: ...

    def is_online(self, peer: PeerId) -> bool:
        """Up and in step, with all of its stage's state."""

    def crash(self, peer: PeerId) -> None: ...

    def come_back(self, peer: PeerId) -> None: ...


class ChurnCounts(TypedDict):
    """How often a stage peer crashed, came back, and was spared."""

    crashes: int
    returns: int
    spared: int


@dataclass
class Churn:
    """`crashes`, `returns` and `spared` count what has happened."""

    spec: ChurnSpec
    seed: int
    first_length_s: float
    stage_peers: StagePeers
    crashes: int = 0
    returns: int = 0
    spared: int = 0
    _newest: int = -1
    _began_at: float | None = None
    _planned: list[tuple[float, int, PeerId]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def iteration_begins(self, iteration: int, now: float) -> list[float]:
        """To be called for every report of it; only the first counts. Returns the moments at which `act` has work."""
        if iteration <= self._newest or not (self.spec.crash_probability or self.spec.rejoin_probability):
            return []
        length_s = now - self._began_at if self._began_at is not None else self.first_length_s
        self._newest, self._began_at = iteration, now
        moments = []
        for peer in self.stage_peers.stages():
            fate = draw_fate(self.spec, self.seed, peer, iteration)
            if fate.rejoins and self.stage_peers.is_down(peer):
                self.returns += 1
                self.stage_peers.come_back(peer)
            if fate.crashes:
                moments.append(now + fate.moment * length_s)
                heapq.heappush(self._planned, (moments[-1], next(self._order), peer))
        return moments

    def counts(self) -> ChurnCounts:
        return {"crashes": self.crashes, "returns": self.returns, "spared": self.spared}

    def act(self, now: float) -> None:
        """Do what is due."""
        while self._planned and self._planned[0][0] <= now:
            _, _, peer = heapq.heappop(self._planned)
            if self.stage_peers.is_down(peer):
                continue
            stages = self.stage_peers.stages()
            if any(self.stage_peers.is_online(other) for other, at in stages.items() if other != peer and at == stages[peer]):
                self.crashes += 1
                self.stage_peers.crash(peer)
            else:
                self.spared += 1


@dataclass(frozen=True)
class SimulatedStagePeers:
    """The stage peers of a simulated swarm."""

    swarm: Swarm

    def stages(self) -> Mapping[PeerId, Stage]:
        return {peer: drawn.stage for peer, drawn in self.swarm.drawn.items() if drawn.stage > 0}

    def is_down(self, peer: PeerId) -> bool:
        return not self.swarm.world.peers[peer].alive

    def is_online(self, peer: PeerId) -> bool:
        known = self.swarm.world.peers[peer]
        machine = known.machine
        is_online = machine.membership.published_state is PeerState.ONLINE
        return known.alive and is_online and not machine.participant.progress.lacks_moments

    def crash(self, peer: PeerId) -> None:
        self.swarm.world.kill(peer)

    def come_back(self, peer: PeerId) -> None:
        self.swarm.restart(peer)
