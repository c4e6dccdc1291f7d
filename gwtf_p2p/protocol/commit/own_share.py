"""One peer's share of an attempt: the gradient is made equal to it, averaged with the group, and held for the commit.

What was counted here may differ from what an attempt credits this peer with: microbatches that are counted but not credited
are taken out (UNCOUNT), those that an earlier attempt took out are put back (RECOUNT), one at a time. Then the group averages.
Until the commit the accumulated gradient stays untouched, so a dropped attempt costs time and nothing else. Whether to take
part in an attempt at all is decided before (`promise`, `participant`).

A microbatch is *spoilt* when this peer's own result of it was not finite, though what it was given was. Its gradient is not in
the sum, so the share is not what it should be: this peer says so instead of averaging, and the next attempt skips the step.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.effects import Average, CancelAverage, Send
from gwtf_p2p.protocol.events import AverageDone, AverageFailed, Timer, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import Abort, Ballot, NotPrepared, Prepare, Prepared

AVERAGING_PRIOR_S = 3.0

SKIPPED = "skipped"
"""Digest of the average of an attempt that skips the step: there is none."""

Correction = tuple[Work, MicrobatchId]
"""UNCOUNT or RECOUNT of one microbatch."""


class OwnShare:
    """What one peer has counted, and the attempt that it takes part in with it. `counted` is of the iteration that is being
    closed, `ahead` of later ones, whose gradients have sums of their own. `preparing` is that attempt, `prepared` says
    that its average is here, `stepping` that it is committed and being applied. Until it has `said` so it does not stand by it,
    and it does not say so while there is a reason to hold it back (`Context.holds_back`)."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.counted: set[MicrobatchId] = set()
        self.ahead: set[MicrobatchId] = set()
        self.spoilt: set[MicrobatchId] = set()
        self.preparing: Prepare | None = None
        self.prepared = False
        self.averaging = False
        self.stepping = False
        self.applied_norm = 0.0
        self._digest, self._squared_norm, self._state = "", 0.0, ""
        self.said = False

    @property
    def gradient_is_fixed(self) -> bool:
        """No microbatch of the iteration that is being closed may be counted now: its gradient is being corrected, averaged or
        applied."""
        return self.stepping or (self.preparing is not None and not self.prepared)

    @property
    def average(self) -> tuple[str, float, str]:
        """Digest and squared norm of the average, and the digest of the weights that it is for, while this peer is prepared."""
        return (self._digest, self._squared_norm, self._state) if self.prepared else ("", 0.0, "")

    def count(self, microbatch: MicrobatchId, version: int) -> None:
        """Its gradient is in the sum of its iteration; that of `version` is being closed."""
        (self.ahead if microbatch.iteration > version else self.counted).add(microbatch)

    def spoil(self, microbatch: MicrobatchId) -> None:
        """A result of this peer's own was not finite."""
        self.spoilt.add(microbatch)

    def missing(self, prepare: Prepare) -> list[MicrobatchId]:
        """What the attempt credits this peer with that is neither in the sum nor here to be put back."""
        done = {microbatch for microbatch, held in self.ctx.held.items() if held.phase is Phase.DONE}
        return sorted(prepare.share_of(self.ctx.me) - self.counted - done)

    def begin(self, prepare: Prepare) -> None:
        """Take part in this attempt."""
        self.preparing = prepare

    def apply(self, gradient_norm: float) -> None:
        """The attempt is committed: its average is applied, and nothing else may happen to the gradient."""
        self.stepping, self.applied_norm = True, gradient_norm

    def forget(self, version: int | None = None) -> None:
        """The iteration is over, for this peer at least: its gradient is empty. That of `version` is closed next, with what is
        counted of it already; None: nothing of it is of use."""
        self.counted = {m for m in self.ahead if m.iteration == version}
        self.ahead = {m for m in self.ahead if version is not None and m.iteration > version}
        self.spoilt = {m for m in self.spoilt if version is not None and m.iteration >= version}
        self.preparing, self.averaging, self.prepared, self.stepping = None, False, False, False
        self.said = False

    # ---- making the gradient equal the share, and averaging it

    def next_correction(self) -> Correction | None:
        """What to take out of the gradient or put back before it can be averaged."""
        if self.preparing is None or self.averaging or self.prepared or self.stepping or self.preparing.skipped_for:
            return None
        share = self.preparing.share_of(self.ctx.me)
        extra = self.counted - share
        if extra:
            return Work.UNCOUNT, min(extra)
        lacking = share - self.counted
        return (Work.RECOUNT, min(lacking)) if lacking else None

    def corrected(self, work: Work, microbatch: MicrobatchId) -> None:
        """A microbatch was taken out of the gradient, or put back."""
        (self.counted.discard if work is Work.UNCOUNT else self.counted.add)(microbatch)
        if work is Work.UNCOUNT:
            self.spoilt.discard(microbatch)

    def average_when_right(self, gradient_is_busy: bool) -> None:
        """`gradient_is_busy`: a computation under way will change the gradient."""
        if self.prepared and not self.said and not self.stepping and not self.ctx.holds_back():
            self.say_prepared()
        if self.preparing is None or self.averaging or self.prepared or self.stepping or gradient_is_busy:
            return
        if self.preparing.skipped_for:
            self.prepared, self._digest, self._squared_norm, self._state = True, SKIPPED, 0.0, ""
            self.say_prepared()
        elif self.next_correction() is not None:
            return
        elif self.spoilt & self.preparing.share_of(self.ctx.me):
            of = (self.preparing.iteration, self.preparing.attempt, self.ctx.stage)
            self._fail(self.preparing, NotPrepared(*of, "its gradient is not finite", finite=False))
        else:
            self.averaging = True
            self.ctx.emit(Average(self.preparing))
            self.wait_for_average()

    def wait_for_average(self) -> None:
        """For as long as it usually takes; then it is time to ask whether anybody still wants it."""
        iteration = self.preparing.iteration if self.preparing is not None else 0
        key = self.ctx.life.average_key("averaging", iteration)
        self.ctx.start_timer(Timer.AVERAGING, "", self.ctx.timings.deadline_s(key, AVERAGING_PRIOR_S))

    def average_done(self, event: AverageDone) -> None:
        """The group has averaged: say so, if it is for the attempt at hand."""
        if self._awaits(event):
            self.averaging, self.prepared = False, True
            self._digest, self._squared_norm, self._state = event.digest, event.squared_norm, event.state
            self.ctx.cancel_timer(Timer.AVERAGING, "")
            self.ctx.timings.observe(self.ctx.life.average_key("averaging", event.iteration), event.seconds)
            self.say_prepared()

    def average_failed(self, event: AverageFailed) -> None:
        """The group could not average: the attempt has no future, and its coordinator is told why."""
        preparing = self.preparing
        if preparing is not None and self._awaits(event):
            if event.refused:
                self.ctx.report("part_refused", peer=event.suspect, iteration=event.iteration, reason=event.reason)
            of = (event.iteration, event.attempt, self.ctx.stage)
            self._fail(preparing, NotPrepared(*of, event.reason, event.suspect, finite=event.finite, refused=event.refused))

    def _fail(self, preparing: Prepare, failure: NotPrepared) -> None:
        self.averaging, self.preparing = False, None
        self.ctx.cancel_timer(Timer.AVERAGING, "")
        self.ctx.emit(Send(preparing.coordinator, failure))

    def _awaits(self, event: AverageDone | AverageFailed) -> bool:
        preparing = self.preparing
        named = (event.iteration, event.attempt)
        return preparing is not None and self.averaging and named == (preparing.iteration, preparing.attempt)

    def say_prepared(self) -> None:
        """To the coordinator of the attempt, which may not have heard it."""
        preparing, self.said = self.preparing, self.said or not self.ctx.holds_back()
        if not self.said:
            return
        assert preparing is not None
        average = (self._digest, self._squared_norm)
        terms = preparing.terms if self.ctx.verify is not None else ""
        said = Prepared(preparing.iteration, preparing.attempt, self.ctx.stage, *average, terms, self._state)
        self.ctx.emit(Send(preparing.coordinator, said))

    def aborted(self, sender: PeerId, message: Abort) -> None:
        """The coordinator has given this attempt up."""
        preparing = self.preparing
        if preparing is not None and (message.iteration, Ballot(message.attempt, sender)) == (
            preparing.iteration,
            preparing.ballot,
        ):
            self.drop()

    def drop(self) -> None:
        """The gradient may change again."""
        if self.preparing is None or self.stepping:
            return
        self.ctx.cancel_timer(Timer.AVERAGING, "")
        if self.averaging or self.prepared:
            self.ctx.emit(CancelAverage(self.preparing.iteration, self.preparing.attempt))
        self.preparing, self.averaging, self.prepared, self.said = None, False, False, False
