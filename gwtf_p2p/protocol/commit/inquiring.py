"""Asking where everybody stands: when a coordinator has to, and what attempt it may open afterwards.

A coordinator that has not led the iteration before does not know whether somebody else has begun to close this one. While it
is *unsure*, it opens no attempt: it first asks all peers that it can reach (`Inquire`), with a number that bars all lower
attempts, and decides when all have answered (`inquiry.decide`). Numbers of inquiries and of attempts are one sequence.
"""

from __future__ import annotations

from gwtf_p2p.protocol.commit.admission import Admission
from gwtf_p2p.protocol.commit.inquiry import Inquiry, Outcome, Replies, common_version, decide
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.certificates import ATTEMPTS_PER_EPOCH
from gwtf_p2p.protocol.wire.messages import Abort, Ballot, Inquire, Standing

INQUIRY_PRIOR_S = 1.0
"""How long to wait before asking again while nothing is measured; this is no time-out."""


class Inquiring:
    """Of one coordinator. `inquiry` is the one under way, `number` the highest that it has used, or has been refused by."""

    def __init__(self, context: Context, participant: Participant, roster: Roster, admission: Admission) -> None:
        self.ctx, self.participant = context, participant
        self.roster, self.admission = roster, admission
        self.inquiry: Inquiry | None = None
        self.unsure = True
        self.number = 0

    def reset(self, unsure: bool) -> None:
        """Another iteration. `unsure`: somebody else may have begun to close it."""
        self.inquiry = None
        self.number = self.ctx.epoch * ATTEMPTS_PER_EPOCH
        self.unsure = unsure

    def doubt(self) -> None:
        """Somebody else may have begun to close this iteration after all."""
        self.unsure = True

    def be_sure(self) -> None:
        """All have answered, and nothing stands in the way of an attempt of its own."""
        self.unsure = False

    def next_number(self) -> int:
        """Of the attempt that is opened now."""
        self.number += 1
        return self.number

    # ---- asking

    def ask(self) -> None:
        """Bar all lower attempts, and learn of the highest one and of who is at this iteration."""
        ctx, version = self.ctx, self.participant.version
        promised = self.participant.promise.promised
        self.number = max(self.number, promised.attempt if promised else 0) + 1
        records = set(ctx.view.records if ctx.view else ())
        waiting = records & self.admission.waiting.keys()  # what one without a record says of the swarm counts for nothing
        everybody = {ctx.me, *self.roster.data_peers(), *self.roster.stages, *waiting, *records}
        self.inquiry = Inquiry(self.number, {peer for peer in everybody if not ctx.liveness.is_lost(peer)})
        for peer in sorted(self.inquiry.asked):
            ctx.emit(Send(peer, Inquire(version, self.number)))
        self._wait()

    def late(self) -> None:
        """Ask those again that have not answered, and whether they live."""
        if self.inquiry is not None:
            for peer in self.inquiry.waiting_for():
                self.ctx.suspect(peer, "an inquiry is late")
                self.ctx.emit(Send(peer, Inquire(self.participant.version, self.inquiry.number)))
            self._wait()

    def _wait(self) -> None:
        self.ctx.start_timer(Timer.INQUIRE, "", self.ctx.timings.deadline_s(("inquire",), INQUIRY_PRIOR_S))

    def begin(self) -> None:
        """This data peer takes part in an iteration. After a restart nothing is known of the others."""
        if self.participant.version > 0 and self.roster.coordinates and self.unsure and self.inquiry is None:
            self.ask()

    def peer_returned(self, peer: PeerId) -> None:
        """A lost peer is back: is it still at this iteration?"""
        if self.roster.coordinates:
            self.ctx.emit(Send(peer, Inquire(self.participant.version)))

    # ---- answers

    def note(self, sender: PeerId, standing: Standing) -> bool:
        """Take an answer; False for what is none."""
        inquiry, participant = self.inquiry, self.participant
        if inquiry is None:
            return False
        if standing.position > participant.position and not standing.joining and not participant.certifier.believes(standing):
            inquiry.asked.discard(sender)  # what it says counts for nothing
            return True
        return inquiry.note(sender, standing, participant.position, self.ctx.me)

    def forget(self, peer: PeerId) -> None:
        """It will not answer."""
        if self.inquiry is not None:
            self.inquiry.asked.discard(peer)

    def outcome(self) -> tuple[Outcome, Replies] | None:
        """What follows once all that can be reached have answered, and their answers; None while somebody has not."""
        ctx, inquiry, version = self.ctx, self.inquiry, self.participant.version
        if inquiry is None or inquiry.waiting_for():
            return None
        self.inquiry = None
        ctx.cancel_timer(Timer.INQUIRE, "")
        outcome = decide(inquiry, self.participant.position, ctx.stages, ctx.me)
        common = common_version(inquiry.replies, ctx.past, ctx.stages)
        if common is not None and common > version:
            outcome = Outcome(f"all stages have version {common}", behind=True)
        if outcome.refused is not None and outcome.commit is None and not outcome.behind:
            self.number = max(self.number, outcome.refused.attempt)
        ctx.report("inquired", iteration=version, attempt=inquiry.number, reason=outcome.reason)
        return outcome, inquiry.replies

    def free(self, sender: PeerId, standing: Standing, current: Ballot | None) -> None:
        """A peer takes part in an attempt that has no future: it must not wait for it. `current` is the one that has."""
        prepare, version = standing.prepare, self.participant.version
        if prepare is None or prepare.ballot == current or not self.roster.coordinates or self.inquiry is not None:
            return
        if prepare.coordinator == self.ctx.me:
            self.ctx.emit(Send(sender, Abort(version, prepare.attempt)))
        elif self.number > prepare.attempt:
            self.ctx.emit(Send(sender, Inquire(version, self.number)))
