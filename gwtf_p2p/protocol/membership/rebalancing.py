"""Which stage needs a peer most? A newcomer takes it, and a stage peer changes to it when it is sure enough (SWARM has another
rule: `swarm_rebalancing`).

A stage's *pace* is how many seconds it needs per microbatch: the larger of what its peers' compute allows (1 / sum of their
rates) and what their slots allow (how long a microbatch holds a slot, over the sum of their capacities: the flow per capacity
of the GWTF prototype). The stage with the largest pace is the bottleneck of the swarm. A move takes one peer there, if after
it neither that stage nor the one that it leaves is as slow as the bottleneck was, by a margin. No stage is emptied by a move.

All peers find the same move from the same records, so they agree on the mover without talking. Against flapping: the margin;
the same move must be found several times in a row; nothing moves while a peer is on its way (joining, syncing, serving without
the whole state, or draining), nor for a while after any peer has come, gone or moved. A stage without anybody stops the
training: then only the second rule holds.

A newcomer takes the stage with the largest pace, where one more peer raises the swarm's throughput most. Ties go to the stage
with fewer peers, then to one drawn by the newcomer's id, so that several newcomers who look at the same records do not all
choose the same stage. The dead do not count, though their records live on for a while: whoever looks leaves out those that it
has lost itself, and those that data peers say they have (`NetworkView.said_lost`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from statistics import median

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move, NoMove
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

MARGIN = 0.2
"""By how much the bottleneck must get faster: more than measured times differ from one look to the next."""

ALIKE = 0.15
"""Movers whose moves differ by less are alike: the lowest id moves, so that noise does not name another one at each look."""

LOOK_S = 5.0
"""Between two looks at the records."""

LOOKS = 3
LOOKS_WHEN_EMPTY = 2
"""So often in a row the same move must be found."""

COOLDOWN_S = 60.0
"""After any peer has come, gone or moved: what it changes must be measured first."""


class Paces:
    """Of all stages, from the records of `coming` peers. A peer that is not measured counts with the median of the others."""

    def __init__(self, stages: int, records: Iterable[StageRecord]) -> None:
        self.participants: dict[Stage, list[StageRecord]] = {Stage(k): [] for k in range(1, stages + 1)}
        for record in records:
            if record.stage in self.participants:
                self.participants[record.stage].append(record)
        measured = [
            r.forward_s + r.backward_s for group in self.participants.values() for r in group if r.forward and r.backward
        ]
        self._usual_s = median(measured) if measured else 1.0
        self._holds_s: dict[Stage, float] = {}
        rest_s = 0.0
        for stage in sorted(self.participants, reverse=True):
            group = self.participants[stage]
            rest_s += median(self.seconds(r) for r in group) if group else self._usual_s
            self._holds_s[stage] = rest_s

    def seconds(self, record: StageRecord) -> float:
        """Of both passes of one microbatch."""
        return max(1e-6, (record.forward_s + record.backward_s) or self._usual_s)

    def pace_s(self, stage: Stage, without: PeerId | None = None, more: StageRecord | None = None) -> float:
        """Seconds per microbatch; infinite for a stage without anybody."""
        group = [r for r in self.participants[stage] if r.peer != without] + ([more] if more is not None else [])
        if not group:
            return inf
        compute_s = 1.0 / sum(1.0 / self.seconds(r) for r in group)
        slots = sum(r.capacity for r in group)
        return max(compute_s, self._holds_s[stage] / slots) if all(r.capacity for r in group) else compute_s

    def bottleneck(self) -> Stage:
        """Of equals the lowest."""
        return min(self.participants, key=lambda stage: (-round(self.pace_s(stage), 9), stage))


@dataclass(frozen=True, slots=True)
class StageChoice:
    stage: Stage
    reason: str


def choose_stage(view: NetworkView, me: PeerId, fits: Iterable[Stage] = ()) -> StageChoice:
    """Counts peers that are about to serve as well: a stage whose only other peer is still joining is not empty. Does
    not count those that data peers hold for lost.

    `fits`: the stages that there is memory for; empty for all.
    """
    coming = [r for p, r in view.without(view.said_lost).records.items() if p != me and r.state is not PeerState.DRAINING]
    paces = Paces(view.stages, coming)

    def key(stage: Stage) -> tuple[float, int, str]:
        drawn = hashlib.sha256(f"{me}/{stage}".encode()).hexdigest()
        return -round(paces.pace_s(stage), 6), len(paces.participants[stage]), drawn

    best = min(frozenset(fits) or paces.participants, key=key)
    count, pace_s = len(paces.participants[best]), paces.pace_s(best)
    if not count:
        return StageChoice(best, "no peer serves it yet")
    return StageChoice(best, f"the slowest of {view.stages} stages, {pace_s:.3f} s per microbatch with {count} peers")


def best_move(view: NetworkView) -> Move | NoMove:
    """The one move that helps most now, whoever is looking."""
    stage_peers = [record for record in view.records.values() if record.stage > 0]
    on_their_way = [record.peer for record in stage_peers if record.state is not PeerState.ONLINE or record.lacks_moments]
    if on_their_way:
        return NoMove(f"{on_their_way[0]} is on its way")
    paces = Paces(view.stages, stage_peers)
    target = paces.bottleneck()
    before = paces.pace_s(target)
    found: list[tuple[float, PeerId, Stage]] = []
    for stage, group in paces.participants.items():
        if stage == target or len(group) < 2:
            continue
        for record in group:
            if record.moves_to and target not in record.moves_to:
                continue  # it has no memory for that stage, or is to stay where it is
            after = max(paces.pace_s(stage, without=record.peer), paces.pace_s(target, more=record))
            found.append((after, record.peer, stage))
    if not found:
        return NoMove("no stage can spare a peer that may move")
    least = min(after for after, _, _ in found)
    peer, source, after = min((peer, stage, after) for after, peer, stage in found if after <= (1 + ALIKE) * least)
    change = f"stage {target} goes from {before:.3f} to at most {after:.3f} s per microbatch"
    if after > (1 - MARGIN) * before:
        return NoMove(f"too little to gain: {change}")
    return Move(peer, source, target, change)


@dataclass(slots=True)
class _Suggestion:
    move: Move
    looks: int


class Mover:
    """Of one stage peer: when is it its turn to move?"""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self._suggested: _Suggestion | None = None
        self._stages: Mapping[PeerId, Stage] = {}
        self._changed_at = -inf

    def look(self, view: NetworkView, now: float) -> Move | NoMove:
        """A `Move` of this peer, now; or why not. To be called every `LOOK_S` with the records of those that are not lost."""
        stages = {peer: record.stage for peer, record in view.records.items() if record.stage > 0}
        if stages != self._stages:
            self._stages, self._changed_at = stages, now
        move = best_move(view)
        if isinstance(move, NoMove):
            self._suggested = None
            return move
        former = self._suggested
        same = former is not None and (former.move.peer, former.move.to_stage) == (move.peer, move.to_stage)
        self._suggested = _Suggestion(move, former.looks + 1 if former is not None and same else 1)
        empty = not view.peers_of_stage(move.to_stage)
        if not empty and now - self._changed_at < COOLDOWN_S:
            return NoMove(f"the peers changed {now - self._changed_at:.0f} s ago")
        if self._suggested.looks < (LOOKS_WHEN_EMPTY if empty else LOOKS):
            return NoMove(f"found {self._suggested.looks} times: {move.peer} to stage {move.to_stage}, {move.reason}")
        return move if move.peer == self.me else NoMove(f"{move.peer} moves to stage {move.to_stage}")
