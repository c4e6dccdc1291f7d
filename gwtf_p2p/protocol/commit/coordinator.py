"""The coordinator: decides what each stage group averages, and commits it when all participants have.

The **coordinator** of an iteration is the live data peer with the lowest id among those that take part in it. When every one of
them has reported `Finished` with its ledger (who did which stage of which microbatch) and nobody credited is lost, it sends
each participant of each stage group a `Prepare`. Participants are those credited and the others of the *roster*: all peers
known to be at this iteration, which need the step though nothing is credited to them. A coordinator that has not led the
iteration before does not know whether somebody else has begun to close this one: it first asks all peers where they stand
(`Inquire`, see `aggregation` for the rule that it follows), and so learns the roster too.

Newcomers, and peers that fell behind, say where they stand; the coordinator admits them into the next attempt, and names
donors.
"""

from __future__ import annotations

from typing import assert_never, get_args

from gwtf_p2p.protocol.commit.admission import Admission
from gwtf_p2p.protocol.commit.attempt import Attempt, prepares
from gwtf_p2p.protocol.commit.inquiry import Inquiry, Outcome, common_version, decide, stages_without
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.reports import Reports
from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import CoordinatorTimer, Timer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.messages import (
    Abort,
    Ballot,
    Commit,
    Finished,
    Inquire,
    Lost,
    NotPrepared,
    Prepared,
    Standing,
)

AVERAGE_PRIOR_S = 3.0
INQUIRY_PRIOR_S = 1.0
FINISH_PRIOR_S = 3.0
"""How long to wait before asking while nothing is measured; these are no time-outs."""

PREPARE_RETRY_S = 0.25

COORDINATOR_TIMERS: tuple[CoordinatorTimer, ...] = get_args(CoordinatorTimer)

ATTEMPTS_PER_EPOCH = 1 << 20
"""So that no two committed attempts of an iteration have equal numbers, whatever happened between."""


class Coordinator:
    """Lives in every data peer; acts in the one that leads."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.roster = Roster(context, participant)
        self.admission = Admission(context, participant, self.roster)
        participant.role.be_led_by(self.roster.coordinator)
        self.attempt: Attempt | None = None
        self.inquiry: Inquiry | None = None
        self.reports = Reports(context)
        self.finished = self.reports.finished
        self._unsure = True
        self._number = 0
        self._prepared_at = 0.0
        self._said: tuple[object, ...] = ()

    # ---- towards an attempt

    def data_peer_finished(self, sender: PeerId, message: Finished) -> None:
        position = (message.epoch, message.iteration)
        if position == self.participant.position:
            self.finished[sender] = message
            for peer in sorted({peer for credit in message.ledger for peer in credit.peers if peer}):
                if self.ctx.liveness.is_lost(peer):
                    self.reports.void(peer, None)
            if not self.roster.coordinates:
                self.ctx.emit(Send(sender, self.participant.standing()))  # it thinks that this peer does
            self.try_to_prepare()
        elif position < self.participant.position:
            self.admission.show_the_way(sender, None)

    def try_to_prepare(self) -> None:
        """Send out a `Prepare` if all is there; otherwise say what is missing, and ask for it after a while."""
        ctx, version = self.ctx, self.participant.version
        if not self.roster.coordinates or self.attempt is not None or self.inquiry is not None:
            return
        missing = [peer for peer in self.roster.data_peers() if peer not in self.finished]
        doubtful = self.reports.credited(self.roster.data_peers()) & ctx.liveness.excluded
        if missing or doubtful:
            said = (version, tuple(missing), doubtful)
            if self.finished and said != self._said:
                self._said = said
                ctx.report("close_waits", iteration=version, for_data_peers=missing, for_redo=sorted(doubtful))
            if self.finished and not ctx.is_armed(Timer.WAIT, ""):
                ctx.start_timer(Timer.WAIT, "", ctx.timings.deadline_s(("finish",), FINISH_PRIOR_S))
            return
        if not any(finished.ledger for finished in self.finished.values()):
            return
        if self._unsure:
            self._inquire()
        else:
            self._open(self._number + 1)

    def _open(self, number: int) -> None:
        ctx, participant = self.ctx, self.participant
        self._number = number
        finished = {peer: self.finished[peer] for peer in self.roster.data_peers()}
        groups = prepares(
            participant.position, Ballot(number, ctx.me), participant.committed, self.roster.present(), finished, ctx.stages
        )
        self.attempt = Attempt(number, groups)
        self._prepared_at = ctx.now
        ctx.cancel_timer(Timer.WAIT, "")
        for peer, stage in self.attempt.participants.items():
            ctx.liveness.watch(peer, ctx.out)
            ctx.emit(Send(peer, self.attempt.groups[stage]))
        ctx.start_timer(Timer.AVERAGE, "", ctx.timings.deadline_s(("average",), AVERAGE_PRIOR_S))

    # ---- an attempt under way

    def prepared(self, sender: PeerId, message: Prepared) -> None:
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or (message.iteration, message.attempt) != (self.participant.version, attempt.number):
            return
        attempt.digests[sender] = message.digest
        if attempt.waiting_for() or attempt.committed is not None:
            return
        wrong = attempt.disagreement()
        if wrong:
            self._give_up(wrong)
            return
        ctx.cancel_timer(Timer.AVERAGE, "")
        ctx.timings.observe(("average",), ctx.now - self._prepared_at)
        loss = attempt.groups[DATA_STAGE].mean_loss
        attempt.committed = Commit(self.participant.version, attempt.number, ctx.me, loss)
        for peer in attempt.participants:
            ctx.emit(Send(peer, attempt.committed))

    def not_prepared(self, sender: PeerId, message: NotPrepared) -> None:
        attempt = self.attempt
        if attempt is None or (message.iteration, message.attempt) != (self.participant.version, attempt.number):
            return
        if message.missing:
            self.reports.void(sender, frozenset(message.missing))
        if message.suspect is not None:
            self.ctx.suspect(message.suspect, f"{sender} could not average with it: {message.reason}")
        self._give_up(f"{sender}: {message.reason}")

    def _give_up(self, why: str) -> None:
        """End this attempt; the next one follows shortly, or when a redo is done."""
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or attempt.committed is not None:
            return
        self.attempt = None
        ctx.report("average_failed", iteration=self.participant.version, reason=why)
        ctx.cancel_timer(Timer.AVERAGE, "")
        for peer in attempt.participants:  # a lost one too: it may be back before it reads this
            ctx.emit(Send(peer, Abort(self.participant.version, attempt.number)))
        self._admit_joiners()
        ctx.start_timer(Timer.PREPARE, "", PREPARE_RETRY_S)

    def waits_for(self) -> list[PeerId]:
        """Participants that have not averaged, peers that have not said where they stand."""
        if self.attempt is not None:
            return self.attempt.waiting_for() if self.attempt.committed is None else []
        return self.inquiry.waiting_for() if self.inquiry is not None else []

    def timer(self, what: CoordinatorTimer) -> None:
        match what:
            case Timer.AVERAGE:
                self._average_is_late()
            case Timer.INQUIRE:
                self._inquiry_is_late()
            case Timer.WAIT:
                self._data_peers_are_late()
            case Timer.PREPARE:
                self.try_to_prepare()
            case Timer.BACK:
                if self._is_free and self.admission.waiting:
                    self.admission.patience_is_over = True
                    self._inquire()
            case _:
                assert_never(what)

    @property
    def _is_free(self) -> bool:
        """It coordinates, and neither an attempt nor an inquiry is under way."""
        return self.roster.coordinates and self.attempt is None and self.inquiry is None

    def _average_is_late(self) -> None:
        """Ask whoever has not prepared, and send its `Prepare` again."""
        ctx = self.ctx
        if self.attempt is not None:
            for peer in self.attempt.waiting_for():
                ctx.suspect(peer, "average is late")
                ctx.emit(Send(peer, self.attempt.groups[self.attempt.participants[peer]]))
            ctx.start_timer(Timer.AVERAGE, "", ctx.timings.deadline_s(("average",), AVERAGE_PRIOR_S))

    def _inquiry_is_late(self) -> None:
        ctx = self.ctx
        if self.inquiry is not None:
            for peer in self.inquiry.waiting_for():
                ctx.suspect(peer, "an inquiry is late")
                ctx.emit(Send(peer, Inquire(self.participant.version, self.inquiry.number)))
            ctx.start_timer(Timer.INQUIRE, "", ctx.timings.deadline_s(("inquire",), INQUIRY_PRIOR_S))

    def _data_peers_are_late(self) -> None:
        if not self._is_free:
            return
        for peer in self.roster.data_peers():
            if peer not in self.finished:
                self.ctx.suspect(peer, "it has not finished")
                self.ctx.emit(Send(peer, Inquire(self.participant.version)))
        if self._unsure:
            self._inquire()  # an attempt of a coordinator that is lost may keep somebody from finishing
        self.try_to_prepare()

    # ---- where everybody stands

    def _inquire(self) -> None:
        """Bar all lower attempts, and learn of the highest one and of who is at this iteration."""
        ctx, version = self.ctx, self.participant.version
        promised = self.participant.promise.promised
        self._number = max(self._number, promised.attempt if promised else 0) + 1
        everybody = {ctx.me, *self.roster.data_peers(), *self.roster.stages, *self.admission.waiting}
        everybody |= set(ctx.view.records if ctx.view else ())
        self.inquiry = Inquiry(self._number, {peer for peer in everybody if not ctx.liveness.is_lost(peer)})
        for peer in sorted(self.inquiry.asked):
            ctx.emit(Send(peer, Inquire(version, self._number)))
        ctx.start_timer(Timer.INQUIRE, "", ctx.timings.deadline_s(("inquire",), INQUIRY_PRIOR_S))

    def _decide_when_known(self) -> None:
        ctx, inquiry, version = self.ctx, self.inquiry, self.participant.version
        if inquiry is None or inquiry.waiting_for():
            return
        self.inquiry = None
        ctx.cancel_timer(Timer.INQUIRE, "")
        outcome = decide(inquiry, self.participant.position, ctx.stages, ctx.me)
        common = common_version(inquiry.replies, ctx.past, ctx.stages)
        if common is not None and common > version:
            outcome = Outcome(f"all stages have version {common}", behind=True)
        ctx.report("inquired", iteration=version, attempt=inquiry.number, reason=outcome.reason)
        if outcome.commit is not None:
            for peer in outcome.to_commit:
                ctx.emit(Send(peer, outcome.commit))
        if outcome.behind:
            self.participant.fall_behind(outcome.reason, self.participant.weights)
        elif outcome.refused is not None:
            self._number = max(self._number, outcome.refused.attempt)
            ctx.liveness.heard_from(outcome.refused.coordinator, ctx.now, ctx.out)
            ctx.start_timer(Timer.PREPARE, "", PREPARE_RETRY_S)
        elif outcome.commit is None:
            lost = stages_without(version, inquiry.replies, ctx.past, ctx.stages) if self.admission.patience_is_over else []
            self.admission.patience_is_over = False
            why = outcome.reason if outcome.go_back else f"nobody has version {version} of stages {lost}"
            if (outcome.go_back or lost) and self.admission.go_back(inquiry.replies, why):
                return
            self.roster.learn(inquiry.replies)
            self._unsure = False
            self._admit_joiners()
            self.try_to_prepare()

    def stands(self, sender: PeerId, standing: Standing) -> None:
        """A peer says where it stands: an answer, or a newcomer, or a peer that has doubts."""
        position, attempt = self.participant.position, self.attempt
        if self.inquiry is not None and self.inquiry.note(sender, standing, position, self.ctx.me):
            self._decide_when_known()
        if standing.joining:
            self._joins(sender, standing)
        elif standing.leaving:
            self._leaves(sender)
        elif standing.position < position:
            self.admission.show_the_way(sender, standing)
        elif standing.position == position:
            self.roster.enter(sender, standing)
            if standing.coordinator not in (None, self.ctx.me) and self.roster.coordinates:
                self._settle_who_coordinates(sender, standing)
            if self._waits_to_take_part(sender, standing):
                self._joins(sender, standing)
            self._free(sender, standing)
            refused = standing.promised is not None and attempt is not None and standing.promised.coordinator != self.ctx.me
            unfinished = standing.taking_part and sender not in self.finished
            if attempt is not None and sender in attempt.participants and (refused or unfinished):
                self._unsure |= refused
                self._give_up(f"{sender} is not free for it")
        if attempt is not None and sender in attempt.participants and (standing.joining or standing.position != position):
            self.roster.remove(sender, gone=False)
            self.reports.void(sender, None)
            self._give_up(f"{sender} is not at iteration {position[1]}")

    def _waits_to_take_part(self, peer: PeerId, standing: Standing) -> bool:
        """A data peer with the weights that is not expected here, or that is and has not been told so."""
        told = standing.active or self.participant.data_peers is None
        return standing.stage == DATA_STAGE and not standing.syncing and not (told and peer in self.roster.data_peers())

    def _settle_who_coordinates(self, other: PeerId, standing: Standing) -> None:
        """It does not know that this one leads. If two have started alone, each as the first of those it knew: the lower id."""
        if standing.coordinator == other < self.ctx.me:
            if self.participant.version > 0:
                self._give_up(f"{other} leads")
                self.participant.set_voters(tuple(sorted({other, *self.roster.voters()})))
                self._unsure = True
        else:
            self.ctx.emit(Send(other, self.participant.standing()))

    def _free(self, sender: PeerId, standing: Standing) -> None:
        """A peer takes part in an attempt that has no future: it must not wait for it."""
        prepare, version = standing.prepare, self.participant.version
        current = (
            self.attempt is not None and prepare is not None and prepare.ballot == Ballot(self.attempt.number, self.ctx.me)
        )
        if prepare is None or current or not self.roster.coordinates or self.inquiry is not None:
            return
        if prepare.coordinator == self.ctx.me:
            self.ctx.emit(Send(sender, Abort(version, prepare.attempt)))
        elif self._number > prepare.attempt:
            self.ctx.emit(Send(sender, Inquire(version, self._number)))

    def _joins(self, sender: PeerId, standing: Standing) -> None:
        """What it had before is gone; it may take part again once it is admitted."""
        if standing.joining:
            self.roster.remove(sender, gone=True)
            self.finished.pop(sender, None)
            self.reports.void(sender, None)
        self.admission.waiting[sender] = standing
        self._admit_joiners()
        self.try_to_prepare()

    def _leaves(self, peer: PeerId) -> None:
        self.roster.remove(peer, gone=True)
        if self.attempt is not None and peer in self.attempt.participants:
            self._give_up(f"{peer} leaves")
        if self.inquiry is not None:
            self.inquiry.asked.discard(peer)
            self._decide_when_known()
        self.try_to_prepare()

    def _admit_joiners(self) -> None:
        """Whoever waits, once it is known who is there, and no attempt is under way."""
        if self.admission.waiting and self.roster.coordinates and self.attempt is None and self.inquiry is None:
            if self.admission.must_be_weighed() or self._unsure:
                self._inquire()
            else:
                self.admission.admit_all()

    # ---- other peers, other iterations

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """What it did is void; the coordinator tells whom it concerns."""
        attempt = self.attempt
        stage = self.roster.remove(peer, gone=False)
        self.admission.waiting.pop(peer, None)
        self.finished.pop(peer, None)
        self.reports.void(peer, None)
        if self.roster.coordinates:
            for other in self.roster.concerned_by_loss(peer, stage):
                self.ctx.emit(Send(other, Lost(peer, reason)))
        if attempt is not None and peer in attempt.participants:
            self._give_up(f"{peer} is lost: {reason}")
        if self.inquiry is not None:
            self.inquiry.asked.discard(peer)
            self._decide_when_known()
        idle = self.roster.coordinates and self.inquiry is None and self.attempt is None
        if idle and self._unsure and self.participant.preparing is not None:
            self._inquire()  # the former coordinator may have committed already
        self.try_to_prepare()

    def peer_returned(self, peer: PeerId) -> None:
        """A lost peer is back: is it still at this iteration?"""
        if self.roster.coordinates:
            self.ctx.emit(Send(peer, Inquire(self.participant.version)))

    def begin(self) -> None:
        """This data peer takes part in an iteration. After a restart nothing is known of the others."""
        if self.participant.version > 0 and self.roster.coordinates and self._unsure and self.inquiry is None:
            self._inquire()

    def new_iteration(self) -> None:
        """Who led the one before knows the participants of the next."""
        attempt = self.attempt
        led = attempt is not None and attempt.committed is not None
        participants = attempt.participants if attempt is not None and led else {}
        self.roster.begin(participants)
        self.reset()
        self._unsure = not led
        self._admit_joiners()

    def reset(self) -> None:
        """Forget an iteration that is over."""
        for what in COORDINATOR_TIMERS:
            self.ctx.cancel_timer(what, "")
        self.attempt = self.inquiry = None
        self.finished.clear()
        if not self.roster.coordinates:
            self.admission.waiting.clear()
        self._number = self.ctx.epoch * ATTEMPTS_PER_EPOCH
        self._unsure = True
