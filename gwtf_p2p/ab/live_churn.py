"""Churn and rebalancing of a live run: the same plans as the simulator's (`simulation/churn`, `simulation/rebalancing`), acted
out on real processes. A crash is a SIGKILL; who comes back is a newly started process with the same identity.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.placement import Move, swarm_move
from gwtf_p2p.protocol.records import PeerState, StageRecord
from gwtf_p2p.simulation.draw import DrawnPeer, draw_fate
from gwtf_p2p.simulation.scenario import ChurnSpec


@dataclass
class Actors:
    """What the plans are acted out with, by the peers' names."""

    kill: Callable[[str], None]
    start: Callable[[str], None]
    move: Callable[[str, Stage], None]


@dataclass
class LiveChurn:
    """`stage_of` and `online` are the run's own books: every relay's stage, and who is up and in step."""

    spec: ChurnSpec
    seed: int
    first_length_s: float
    stage_of: dict[str, Stage]
    online: set[str]
    actors: Actors
    crashes: int = 0
    returns: int = 0
    spared: int = 0
    down: set[str] = field(default_factory=set)
    _began_at: list[float] = field(default_factory=list)
    _planned: list[tuple[float, int, str]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def iteration_begins(self, iteration: int, now: float) -> None:
        """To be called for every report of it; only the first counts."""
        if iteration != len(self._began_at) or not (self.spec.crash_probability or self.spec.rejoin_probability):
            return
        length_s = now - self._began_at[-1] if self._began_at else self.first_length_s
        self._began_at.append(now)
        for name, stage in self.stage_of.items():
            if stage == DATA_STAGE:
                continue
            fate = draw_fate(self.spec, self.seed, PeerId(name), iteration)
            if fate.rejoins and name in self.down:
                self.returns += 1
                self.down.discard(name)
                self.actors.start(name)
            if fate.crashes:
                heapq.heappush(self._planned, (now + fate.moment * length_s, next(self._order), name))

    def act(self, now: float) -> None:
        """Do what is due; to be called often."""
        while self._planned and self._planned[0][0] <= now:
            _, _, name = heapq.heappop(self._planned)
            if name in self.down:
                continue
            others = {n for n in self.online if n != name and self.stage_of[n] == self.stage_of[name]}
            if others:
                self.crashes += 1
                self.online.discard(name)
                self.down.add(name)
                self.actors.kill(name)
            else:
                self.spared += 1


@dataclass
class LiveRebalancing:
    """SWARM's rule every `period_s` (0: never), on the queue lengths that the peers have counted since the last look."""

    period_s: float
    stages: int
    stage_of: dict[str, Stage]
    online: set[str]
    actors: Actors
    moves: int = 0
    leaving: dict[str, Stage] = field(default_factory=dict)
    _look_at: float | None = None

    def act(self, now: float, take_queued: Callable[[], dict[str, list[int]]]) -> None:
        if not self.period_s:
            return
        if self._look_at is None:
            self._look_at = now + self.period_s
        if now < self._look_at:
            return
        self._look_at = now + self.period_s
        lengths = {PeerId(name): sum(counts) / max(1, len(counts)) for name, counts in take_queued().items()}
        move = swarm_move(self._view(self.online), lengths)
        if isinstance(move, Move) and not self.leaving:
            self.leaving[move.peer] = move.to_stage
            self.online.discard(move.peer)
            self.actors.move(move.peer, move.to_stage)

    def left(self, name: str) -> bool:
        """A peer has ended; True when it is to start again in its new stage."""
        stage = self.leaving.pop(name, None)
        if stage is None:
            return False
        self.moves += 1
        self.stage_of[name] = stage
        return True

    def _view(self, names: Iterable[str]) -> NetworkView:
        records = [StageRecord(PeerId(name), RunId("ab"), self.stage_of[name], PeerState.ONLINE, 1) for name in sorted(names)]
        return NetworkView.of(records, self.stages, 1)


def stages_of(drawn: Iterable[DrawnPeer]) -> dict[str, Stage]:
    return {str(peer.id): peer.stage for peer in drawn}
