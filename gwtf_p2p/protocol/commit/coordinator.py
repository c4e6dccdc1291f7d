"""The coordinator: decides what each stage group averages, and commits it when all participants have.

The **coordinator** of an iteration is the live data peer with the lowest id among those that take part in it. When every one of
them has reported `Finished` with its ledger (who did which stage of which microbatch) and nobody credited is lost, it sends
each participant of each stage group a `Prepare`. Participants are those credited and the others of the *roster*: all peers
known to be at this iteration, which need the step though nothing is credited to them. A coordinator that has not led the
iteration before first has to find out where everybody stands (`inquiring`; the rule that it follows is `promise`'s), and so
learns the roster too. Newcomers, and peers that fell behind, say where they stand; the coordinator admits them into the next
attempt, and names donors (`admission`).

At any time it either waits for reports, or inquires, or has an attempt under way (`attempt_under_way`).
"""

from __future__ import annotations

from typing import assert_never, get_args

from gwtf_p2p.protocol.commit.admission import Admission
from gwtf_p2p.protocol.commit.attempt import Reports
from gwtf_p2p.protocol.commit.attempt_under_way import AttemptUnderWay
from gwtf_p2p.protocol.commit.inquiring import Inquiring
from gwtf_p2p.protocol.commit.inquiry import Inquiry
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import CoordinatorTimer, Timer
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import (
    Finished,
    Inquire,
    Lost,
    NotPrepared,
    Prepared,
    Standing,
)

FINISH_PRIOR_S = 3.0
"""How long to wait before asking while nothing is measured; this is no time-out."""

PREPARE_RETRY_S = 0.25

COORDINATOR_TIMERS: tuple[CoordinatorTimer, ...] = get_args(CoordinatorTimer)


class Coordinator:
    """Lives in every data peer; acts in the one that leads."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.roster = Roster(context, participant)
        self.admission = Admission(context, participant, self.roster)
        participant.role.be_led_by(self.roster.coordinator)
        self.inquiring = Inquiring(context, participant, self.roster, self.admission)
        self.under_way = AttemptUnderWay(context, participant)
        self.reports = Reports(context)
        self.finished = self.reports.finished
        self._said: tuple[object, ...] = ()
        self._accused: frozenset[PeerId] = frozenset()

    @property
    def inquiry(self) -> Inquiry | None:
        """The one under way."""
        return self.inquiring.inquiry

    @property
    def _is_free(self) -> bool:
        """It coordinates, and neither an attempt nor an inquiry is under way."""
        return self.roster.coordinates and self.under_way.attempt is None and self.inquiry is None

    # ---- towards an attempt

    def data_peer_finished(self, sender: PeerId, message: Finished) -> None:
        position = (message.epoch, message.iteration)
        if position == self.participant.position:
            self.reports.note(sender, message)
            for peer in sorted({peer for credit in message.ledger for peer in credit.peers if peer}):
                if self.ctx.liveness.is_lost(peer):
                    self.reports.void(peer, None)
            if not self.roster.coordinates:
                self.ctx.emit(Send(sender, self.participant.standing()))  # it thinks that this peer does
            self.try_to_prepare()
        elif position < self.participant.position:
            self.admission.show_the_way(sender, None)
        elif self.ctx.life.ahead and position == (self.ctx.epoch, self.participant.version + 1):
            self.reports.early[sender] = message  # computed ahead: its sender has stepped, this peer has not yet

    def try_to_prepare(self) -> None:
        """Send out a `Prepare` if all is there; otherwise say what is missing, and ask for it after a while."""
        ctx, version = self.ctx, self.participant.version
        if not self._is_free:
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
        self._accused &= ctx.liveness.suspected
        if self._accused:
            return  # with one that is lost, as will be known soon, the next attempt would fail as well
        if self.inquiring.unsure:
            self.inquiring.ask()
        else:
            finished = {peer: self.finished[peer] for peer in self.roster.data_peers()}
            self.under_way.open(self.inquiring.next_number(), self.roster.present(), finished)

    # ---- an attempt under way

    def prepared(self, sender: PeerId, message: Prepared) -> None:
        """A participant has averaged. That its state is all here may not have been heard when it said so."""
        if message.state and self.under_way.is_meant(message):
            self.roster.syncing.discard(sender)
        wrong = self.under_way.prepared(sender, message)
        if wrong:
            self._give_up(wrong)

    def not_prepared(self, sender: PeerId, message: NotPrepared) -> None:
        """A participant could not average, or lacks what is credited to it."""
        if message.refused:
            self.under_way.refuses(sender, message)
        if not self.under_way.is_meant(message):
            return
        if message.missing:
            self.reports.void(sender, frozenset(message.missing))
        if not message.finite:
            self.under_way.is_not_finite(sender)
        if message.suspect is not None and not message.refused:
            self.ctx.suspect(message.suspect, f"{sender} could not average with it: {message.reason}")
            self._accused |= {message.suspect}
        self._give_up(f"{sender}: {message.reason}")

    def _give_up(self, why: str) -> None:
        """End this attempt; the next one follows shortly, or when a redo is done."""
        if self.under_way.give_up(why):
            self._admit_joiners()
            self.ctx.start_timer(Timer.PREPARE, "", PREPARE_RETRY_S)

    def waits_for(self) -> list[PeerId]:
        """Participants that have not averaged, peers that have not said where they stand."""
        attempt = self.under_way.attempt
        if attempt is not None:
            return attempt.waiting_for() if attempt.committed is None else []
        return self.inquiry.waiting_for() if self.inquiry is not None else []

    def timer(self, what: CoordinatorTimer) -> None:
        match what:
            case Timer.AVERAGE:
                self.under_way.late()
            case Timer.INQUIRE:
                self.inquiring.late()
            case Timer.WAIT:
                self._data_peers_are_late()
            case Timer.PREPARE:
                self.try_to_prepare()
            case Timer.BACK:
                if self._is_free and self.admission.waiting:
                    self.admission.lose_patience()
                    self.inquiring.ask()
            case _:
                assert_never(what)

    def _data_peers_are_late(self) -> None:
        if not self._is_free:
            return
        reports, version = self.reports, self.participant.version
        for peer in self.roster.data_peers():
            if peer in self.finished:
                continue
            if peer != self.ctx.me and reports.is_beyond(self.roster.patience_s(peer, reports.took_s), peer):
                seconds = self.roster.pass_over(peer)
                self.ctx.report("data_peer_passed_over", peer=peer, iteration=version, waited_s=reports.since_s, for_s=seconds)
                continue
            self.ctx.suspect(peer, "it has not finished")
            self.ctx.emit(Send(peer, Inquire(version)))
        if self.inquiring.unsure:
            self.inquiring.ask()  # an attempt of a coordinator that is lost may keep somebody from finishing
        self.try_to_prepare()

    # ---- where everybody stands

    def _decide_when_known(self) -> None:
        """Do what follows from where everybody stands, once it is known."""
        decided = self.inquiring.outcome()
        if decided is None:
            return
        ctx, (outcome, replies) = self.ctx, decided
        if outcome.commit is not None:
            for peer in outcome.to_commit:
                ctx.emit(Send(peer, outcome.commit))
        if outcome.behind:
            self.participant.fall_behind(outcome.reason, self.participant.weights)
        elif outcome.refused is not None:
            ctx.liveness.heard_from(outcome.refused.coordinator, ctx.now, ctx.out)
            ctx.start_timer(Timer.PREPARE, "", PREPARE_RETRY_S)
        elif outcome.commit is None and not self.admission.goes_back(replies, outcome):
            self.roster.learn(replies)
            self.inquiring.be_sure()
            self._admit_joiners()
            self.try_to_prepare()

    def stands(self, sender: PeerId, standing: Standing) -> None:
        """A peer says where it stands: an answer, or a newcomer, or a peer that has doubts."""
        position, attempt = self.participant.position, self.under_way.attempt
        comes = self.ctx.life.ahead > 0 and standing.is_about_to_begin(position, self.participant.committed)
        if self.inquiring.note(sender, standing):
            self._decide_when_known()
        if standing.joining:
            self._joins(sender, standing)
        elif standing.leaving:
            self._leaves(sender)
        elif standing.epoch < position[0] and self.roster.coordinates:
            self._joins(sender, standing)  # it has not heard that the swarm has gone back
        elif standing.position < position:
            self.admission.show_the_way(sender, standing)
        elif standing.position == position:
            self.roster.enter(sender, standing)
            if standing.coordinator not in (None, self.ctx.me) and self.roster.coordinates:
                self._settle_who_coordinates(sender, standing)
            if self.admission.is_due(sender, standing):
                self._joins(sender, standing)
            self.inquiring.free(sender, standing, self.under_way.ballot)
            refused = standing.promised is not None and attempt is not None and standing.promised.coordinator != self.ctx.me
            unfinished = standing.taking_part and sender not in self.finished
            moved = attempt is not None and attempt.participants.get(sender, standing.stage) != standing.stage
            if attempt is not None and sender in attempt.participants and (refused or unfinished or moved):
                if refused:
                    self.inquiring.doubt()
                self._give_up(f"{sender} is not free for it")
        elsewhere = standing.joining or (standing.position != position and not comes)
        if attempt is not None and sender in attempt.participants and elsewhere:
            self.roster.remove(sender, gone=False)
            self.reports.void(sender, None)
            self._give_up(f"{sender} is not at iteration {position[1]}")

    def _settle_who_coordinates(self, other: PeerId, standing: Standing) -> None:
        """It does not know that this one leads. If two have started alone, each as the first of those it knew: the lower id."""
        if standing.coordinator == other < self.ctx.me:
            if self.participant.version > 0:
                self._give_up(f"{other} leads")
                self.participant.set_voters(tuple(sorted({other, *self.roster.voters()})))
                self.inquiring.doubt()
        else:
            self.ctx.emit(Send(other, self.participant.standing()))

    def _joins(self, sender: PeerId, standing: Standing) -> None:
        """What it had before is gone; it may take part again once it is admitted."""
        if standing.joining:
            self.roster.remove(sender, gone=True)
            self.under_way.forget(sender)
            self.reports.forget(sender)
            self.reports.void(sender, None)
        self.admission.waiting[sender] = standing
        self._admit_joiners()
        self.try_to_prepare()

    def _leaves(self, peer: PeerId) -> None:
        self.roster.remove(peer, gone=True)
        self.under_way.forget(peer)
        if self.under_way.involves(peer):
            self._give_up(f"{peer} leaves")
        self.inquiring.forget(peer)
        self._decide_when_known()
        self.try_to_prepare()

    def _admit_joiners(self) -> None:
        """Whoever waits, once it is known who is there, and no attempt is under way."""
        if self.admission.waiting and self._is_free:
            if self.admission.must_be_weighed() or self.inquiring.unsure:
                self.inquiring.ask()
            else:
                self.admission.admit_all()

    # ---- other peers, other iterations

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """What it did is void; the coordinator tells whom it concerns."""
        stage = self.roster.remove(peer, gone=False)
        self.admission.waiting.pop(peer, None)
        self.under_way.forget(peer)
        self.reports.forget(peer)
        self.reports.void(peer, None)
        if self.roster.coordinates:
            for other in self.roster.concerned_by_loss(peer, stage):
                self.ctx.emit(Send(other, Lost(peer, reason)))
        if self.under_way.involves(peer):
            self._give_up(f"{peer} is lost: {reason}")
        self.inquiring.forget(peer)
        self._decide_when_known()
        if self._is_free and self.inquiring.unsure and self.participant.preparing is not None:
            self.inquiring.ask()  # the former coordinator may have committed already
        self.try_to_prepare()

    def new_iteration(self) -> None:
        """Who led the one before knows the participants of the next."""
        participants = self.under_way.end()
        self.roster.begin(participants)
        self.admission.rebuilding.is_at(self.participant.position)
        self.reset()
        self.inquiring.reset(unsure=not participants)
        early, self.reports.early = self.reports.early, {}
        for sender, finished in sorted(early.items()):
            self.data_peer_finished(sender, finished)
        self._admit_joiners()

    def reset(self) -> None:
        """Forget an iteration that is over."""
        for what in COORDINATOR_TIMERS:
            self.ctx.cancel_timer(what, "")
        self.under_way.end()
        self.reports.clear()
        if not self.roster.coordinates:
            self.admission.waiting.clear()
        self.inquiring.reset(unsure=True)
