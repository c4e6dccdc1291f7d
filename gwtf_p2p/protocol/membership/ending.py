"""The end of a run, an event of all its peers: each has the last iteration's weights on its disk, and then leaves.

A peer is complete *here* when its weights are those of the last iteration and their checkpoint is written (or cannot be, or is
not wanted). It stays until a complete peer of every stage has been seen: only then is the last version something that all can
go on from. Then the run is complete *everywhere*; the peer says so in its record for as long as others need to read it, and
ends, unless it is to stay. One that comes later, or has missed the last iteration and cannot catch up, learns from such
records that there is nothing left to do. A liar alone ends nobody's part while a peer that works on can be seen.
"""

from __future__ import annotations

from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import End, Publish
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.membership.membership import Membership
from gwtf_p2p.protocol.membership.saving import Saving
from gwtf_p2p.protocol.view.evaluations import why
from gwtf_p2p.protocol.wire.records import Completion, StageRecord

LINGER_S = 5.0
"""Between the end and leaving: others look at the records every two seconds, and a record needs a moment to be found."""

REMEMBERED_S = 60.0
"""For how long the end is known by records that are gone: the record of a dead peer, which looks like work, may outlive them.
Not for good, since a record may have lied."""


class Ending:
    """Of one peer. `completion` is what its record says; `over`: its part has ended."""

    def __init__(self, context: Context, participant: Participant, saving: Saving) -> None:
        self.ctx, self.participant, self.saving = context, participant, saving
        self.completion = Completion.RUNS
        self.over = False
        self._done: set[Stage] = set()
        self._through: tuple[tuple[int, int], float] | None = None
        self._said: list[Stage] = []

    def settle(self, serves: bool) -> None:
        """To be called after every event. `serves`: the peer is online with the weights of its iteration."""
        if self.over or not self.ctx.life.may_end:
            return
        if serves and self.participant.progress.is_over(self.participant.version):
            self._complete()
            return
        if self.completion is not Completion.RUNS:  # the swarm has gone back
            self.completion = Completion.RUNS
            self._done.clear()
            self.ctx.emit(Publish())
            self.ctx.cancel_timer(Timer.END, "")
        self._wait(self._others_are_through(serves))

    def _complete(self) -> None:
        ctx, version = self.ctx, self.participant.version
        self.saving.ask(version)
        if not self.saving.is_settled(version):
            return
        if self.completion is Completion.RUNS:
            self.completion = Completion.HERE
            written, failure = self.saving.has_written(version), self.saving.failure
            told = {"iterations": version, "stage": ctx.stage, "early": self._early()}
            ctx.report("run_complete", **told, written=written, failure=failure)
            ctx.emit(Publish())
        missing = self.stages_missing()
        if missing != self._said:
            self._said = missing
            ctx.report("end_waits", stages=missing, iterations=version)
        if missing:
            self._wait(False)
            return
        if self.completion is Completion.HERE:
            self.completion = Completion.EVERYWHERE
            ctx.report("run_complete_everywhere", iterations=version)
            ctx.emit(Publish())
        self._wait(not ctx.life.stays)

    def stages_missing(self) -> list[Stage]:
        """Stages of which no complete peer has been seen since this one is."""
        ctx = self.ctx
        self._done.add(ctx.stage)
        if len(self._done) <= ctx.stages and ctx.view is not None:
            self._done.update(record.stage for record in ctx.view.complete if self._is_complete(record))
        return [stage for k in range(ctx.stages + 1) if (stage := Stage(k)) not in self._done]

    def _is_complete(self, record: StageRecord) -> bool:
        """As it says of another peer, in this epoch."""
        is_over = record.epoch == self.ctx.epoch and self.participant.progress.is_over(record.weights_version)
        return is_over and record.peer != self.ctx.me

    def _others(self) -> list[tuple[PeerId, StageRecord]]:
        view, me = self.ctx.view, self.ctx.me
        return [(peer, record) for peer, record in view.records.items() if peer != me] if view is not None else []

    def _others_are_through(self, serves: bool) -> bool:
        """The run has ended without this peer, and nobody who can be seen works on. One that serves has slept through the end:
        it takes itself for online, and hears from nobody."""
        end = self._end_of_others()
        if end is None or (serves and end <= (self.ctx.epoch, self.participant.version)):
            return False
        return not any(
            record.is_routable and record.completion is Completion.RUNS and not self.ctx.liveness.is_lost(peer)
            for peer, record in self._others()
        )

    def _end_of_others(self) -> tuple[int, int] | None:
        """(epoch, version) at which others are through, as their records say or have said a while ago."""
        now = self.ctx.now
        view, me = self.ctx.view, self.ctx.me
        ends = [(epoch, version) for epoch, version, peer in view.through if peer != me] if view is not None else []
        if ends:
            self._through = max(ends), now
        elif self._through is not None and now - self._through[1] > REMEMBERED_S:
            self._through = None
        return self._through[0] if self._through is not None else None

    @property
    def unkept(self) -> str:
        """Why this peer, whose part has ended, has not written the last weights where it was to keep them; '' if it has."""
        if not self.over or self.completion is not Completion.EVERYWHERE or not self.ctx.life.keeps:
            return ""
        return "" if self.saving.has_written(self.participant.version) else self.saving.failure

    def _wait(self, wanted: bool) -> None:
        if not wanted:
            self.ctx.cancel_timer(Timer.END, "")
        elif not self.ctx.is_armed(Timer.END, ""):
            self.ctx.start_timer(Timer.END, "", LINGER_S)

    def leave_when(self, nothing_left: bool, membership: Membership) -> None:
        """A peer that drains writes the weights that it leaves with; whoever moves to another stage leaves none behind."""
        if nothing_left and membership.moving_to is None and not membership.drained:
            self.saving.leave()
        membership.drained_when(nothing_left)

    def end(self) -> None:
        """The timer fired: nothing has spoken against it since."""
        self.over = True
        self.participant.role.leave()
        took_part = self.completion is Completion.EVERYWHERE
        early = self._early()
        total = self.participant.version if early else self.ctx.life.total_iterations or self._last_seen()
        self.ctx.report("run_over", iterations=total, took_part=took_part)
        self.ctx.emit(End(f"{total} iterations are done, and {early}" if early else f"all {total} iterations are done"))

    def _early(self) -> str:
        """Why the run has ended before its last iteration; '' if it has not."""
        evaluating = self.participant.progress.evaluating
        known = evaluating.known
        return why(known) if known is not None and evaluating.have_ended(self.participant.version) else ""

    def _last_seen(self) -> int:
        """How far the peers are with which the run is complete."""
        view, me = self.ctx.view, self.ctx.me
        return max((version for _, version, peer in view.through if peer != me), default=0) if view is not None else 0
