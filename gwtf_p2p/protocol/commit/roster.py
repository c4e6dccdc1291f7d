"""Who takes part in the iteration, as one data peer knows it: the participants of the next attempt, and who leads it.

The *roster* are all peers known to be at this iteration, which need its step even if nothing is credited to them. The first
of the data peers that began the iteration leads it; *guests* are data peers that came later and do not lead. A peer that is
*gone* was there, has started again or left, and does not count until it is admitted anew. One that is *idle* says itself that
it does not take part: after a cold start, when records are all that is known of who began the iteration, it does not lead.

One that has not finished long after all the others have, though it answers, is *passed over*: the iteration is closed without
its microbatches, it is not waited for again for a while, longer each time, and it is given half the patience after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.remembered import Remembered
from gwtf_p2p.protocol.wire.messages import Standing

PATIENCE_S, PATIENCE_TIMES = 60.0, 10.0
"""How long the others wait for a data peer, from when the last of them has finished: the longer of this, and so many times as
long as that one took."""

LEAST_PATIENCE_S, LEAST_PATIENCE_TIMES = 2.0, 1.0
PASSED_FOR_S, MOST_PASSED_FOR_S = 30.0, 3600.0
"""How long one that was passed over is not waited for, at first and at most: four times as long each time."""

FORGOTTEN_AFTER_S = 3600.0
MOST_PASSED = 256

_IN_ORDER = Remembered[list[PeerId]](8)


class Roster:
    """`syncing` are those that follow without the weights, `from_another` those whose weights of this version come from another
    attempt than this peer's."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.stages: dict[PeerId, Stage] = {}
        self.from_another: set[PeerId] = set()
        self.syncing: set[PeerId] = set()
        self.guests: set[PeerId] = set()
        self.gone: set[PeerId] = set()
        self.idle: set[PeerId] = set()
        self._passed: dict[PeerId, tuple[int, float]] = {}

    # ---- who is not waited for

    def patience_s(self, peer: PeerId, took_s: float) -> float:
        """For a data peer that has not finished, where the last of the others took this long."""
        longest, least = max(PATIENCE_S, PATIENCE_TIMES * took_s), max(LEAST_PATIENCE_S, LEAST_PATIENCE_TIMES * took_s)
        return float(max(longest / 2 ** self._times_passed(peer), least))

    def pass_over(self, peer: PeerId) -> float:
        """Go on without it, for the seconds that are returned."""
        times = self._times_passed(peer)
        seconds = float(min(PASSED_FOR_S * 4**times, MOST_PASSED_FOR_S))
        self._passed.pop(peer, None)
        while len(self._passed) >= MOST_PASSED:
            del self._passed[next(iter(self._passed))]
        self._passed[peer] = (min(times + 1, 16), self.ctx.now + seconds)
        return seconds

    def _times_passed(self, peer: PeerId) -> int:
        """One is forgotten in each hour after it."""
        times, until = self._passed.get(peer, (0, 0.0))
        return max(0, times - int(max(0.0, self.ctx.now - until) / FORGOTTEN_AFTER_S))

    def _is_passed(self, peer: PeerId) -> bool:
        return peer in self._passed and self.ctx.now < self._passed[peer][1]

    # ---- who leads

    def data_peers(self) -> tuple[PeerId, ...]:
        """Those that take part in this iteration and are not lost. Before the first commit: all that are online."""
        found = self._live(set(self.voters()) | self.guests | {self.ctx.me})
        return tuple(sorted(peer for peer in found if not self._is_passed(peer)))

    def coordinator(self) -> PeerId | None:
        """Who came during this iteration does not lead it, as not everybody knows of it; nor does one that began it and has
        started again, until it takes part once more: it would wait to be admitted by whoever leads."""
        first = next(filter(self._leads, _in_order(self.participant.data_peers, self.ctx)), None)
        return first if first is not None else min(self._live(self.guests | {self.ctx.me}), default=None)

    def _leads(self, peer: PeerId) -> bool:
        """It is here, and takes part."""
        absent = peer in self.syncing or (self.participant.version > 0 and peer in self.idle)
        return not absent and self._is_live(peer)

    @property
    def coordinates(self) -> bool:
        return self.participant.role.active and not self.participant.out_of_step and self.coordinator() == self.ctx.me

    def voters(self) -> tuple[PeerId, ...]:
        """The data peers that began this iteration."""
        known, view = self.participant.data_peers, self.ctx.view
        if known is not None:
            return known
        idle = self.idle if self.participant.version > 0 else ()
        others = (p for p in (view.data_peers if view is not None else ()) if p not in idle and p != self.ctx.me)
        return (*others, self.ctx.me)

    def _live(self, peers: set[PeerId]) -> set[PeerId]:
        return set(filter(self._is_live, peers))

    def _is_live(self, peer: PeerId) -> bool:
        here = self.participant.role.active if peer == self.ctx.me else not self.ctx.liveness.is_lost(peer)
        return here and peer not in self.gone

    # ---- who else is there

    def present(self) -> dict[PeerId, Stage]:
        """Participants of an attempt that begins now."""
        return {p: s for p, s in self.stages.items() if not self.ctx.liveness.is_lost(p) and p not in self.gone}

    def serving(self, stage: Stage) -> list[PeerId]:
        """Peers of a stage that hold the weights of this iteration."""
        return sorted(peer for peer, own in self.present().items() if own == stage and peer not in self.syncing)

    def learn(self, replies: Mapping[PeerId, Standing]) -> None:
        """Everybody has said where it stands."""
        self.stages.clear()
        self.syncing.clear()
        for peer, standing in replies.items():
            if standing.position == self.participant.position and not standing.joining and not standing.leaving:
                self.enter(peer, standing)

    def enter(self, peer: PeerId, standing: Standing) -> None:
        """It is at this iteration."""
        self.gone.discard(peer)
        self.stages[peer] = standing.stage
        mine, theirs = self.participant.committed, standing.committed
        (self.from_another.discard if mine in (None, theirs) or theirs is None else self.from_another.add)(peer)
        (self.syncing.add if standing.syncing else self.syncing.discard)(peer)
        if standing.taking_part:
            self.guests.add(peer)
        if standing.stage == DATA_STAGE:
            (self.idle.discard if standing.active else self.idle.add)(peer)

    def admit(self, peer: PeerId, stage: Stage, in_step: bool) -> None:
        """It takes part from now on."""
        self.gone.discard(peer)
        if self.participant.data_peers is not None:
            self.idle.discard(peer)  # else it is told an electorate without it
        self.stages[peer] = stage
        (self.syncing.discard if in_step else self.syncing.add)(peer)
        if in_step and stage == DATA_STAGE:
            self.guests.add(peer)

    def remove(self, peer: PeerId, gone: bool) -> Stage | None:
        """`gone`: whatever else is known of it is not true any more. Returns its stage, if it was in the roster."""
        self.guests.discard(peer)
        if gone:
            self.gone.add(peer)
        return self.stages.pop(peer, None)

    def begin(self, participants: Mapping[PeerId, Stage]) -> None:
        """The next iteration; `participants` of the last attempt are known to be there."""
        self.stages = {p: s for p, s in participants.items() if not self.ctx.liveness.is_lost(p) and p not in self.gone}
        self.from_another.clear()
        self.guests.clear()
        self.gone.clear()
        self.idle.clear()

    def concerned_by_loss(self, peer: PeerId, stage: Stage | None) -> list[PeerId]:
        """Who must hear that a peer is lost: data peers and the neighbouring stages, as one lost after its backward is missed
        by nobody else; everybody if it was the last of its stage, since somebody may have to take its place.
        """
        lost, view = self.ctx.liveness.is_lost, self.ctx.view
        records = view.records if view is not None else {}
        if stage is None and peer in records:
            stage = records[peer].stage
        near = {DATA_STAGE} if not stage else {DATA_STAGE, Stage(stage - 1), Stage(stage + 1)}
        others = {p: r.stage for p, r in records.items()} | self.stages
        empty = all(at != stage or other == peer or lost(other) for other, at in others.items())
        told = (other for other, at in others.items() if not stage or empty or at in near)
        return sorted(other for other in told if other not in (self.ctx.me, peer) and not lost(other))


def _in_order(voters: tuple[PeerId, ...] | None, ctx: Context) -> Sequence[PeerId]:
    """By id, idle ones included; None: nobody has told. Asked for with every message, and put in order when they change."""
    if voters is not None:
        return _IN_ORDER.of((voters,), lambda: sorted(voters))
    online = ctx.view.data_peers if ctx.view is not None else ()
    return _IN_ORDER.of((online, ctx.me), lambda: sorted({*online, ctx.me}))
