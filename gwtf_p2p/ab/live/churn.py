"""Churn and rebalancing of a live run: the plan of `simulation/swarm/churn` and the rule of
`simulation/swarm/swarm_rebalancing`, acted out on real processes. A crash is a SIGKILL; who comes back is a newly started
process with the same identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move, swarm_move
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.scenario.draw import DrawnPeer


@dataclass
class Actors:
    """What the plans are acted out with, by the peers' names."""

    kill: Callable[[str], None]
    start: Callable[[str], None]
    move: Callable[[str, Stage], None]


@dataclass
class LiveStagePeers:
    """The stage peers of a live run, by name. `stage_of`, `online`: the run's own books, every peer's stage and who is in
    step."""

    stage_of: dict[str, Stage]
    online: set[str]
    actors: Actors
    down: set[str] = field(default_factory=set)

    def stages(self) -> Mapping[PeerId, Stage]:
        return {PeerId(name): stage for name, stage in self.stage_of.items() if stage != DATA_STAGE}

    def is_down(self, peer: PeerId) -> bool:
        return peer in self.down

    def is_online(self, peer: PeerId) -> bool:
        return peer in self.online

    def crash(self, peer: PeerId) -> None:
        self.online.discard(peer)
        self.down.add(peer)
        self.actors.kill(peer)

    def come_back(self, peer: PeerId) -> None:
        self.down.discard(peer)
        self.actors.start(peer)


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
