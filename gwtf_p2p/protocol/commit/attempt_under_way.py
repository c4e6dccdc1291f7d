"""The attempt that a coordinator has opened: who is asked to average, who has, and when it is committed or given up.

It is committed as soon as every participant of every stage group has `Prepared`, with equal digests in each group; what is
committed is never given up. A lost participant is told of the end of an attempt as well: it may be back before it reads that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gwtf_p2p.protocol.averages.refused_parts import RefusedParts
from gwtf_p2p.protocol.commit.attempt import Attempt, in_rows, prepares, reported_loss
from gwtf_p2p.protocol.commit.certifying import certificate_of
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Abort, Ballot, Finished, NotPrepared, Prepare, Prepared, commit_of

AVERAGE_PRIOR_S = 3.0
"""How long to wait before asking while nothing is measured; this is no time-out."""


class AttemptUnderWay:
    """Of one coordinator; `attempt` is None while none is under way."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.attempt: Attempt | None = None
        self._ended: Attempt | None = None
        self._began_at = 0.0
        self._not_finite: set[PeerId] = set()
        self._refused = RefusedParts()
        self._told: set[tuple[PeerId, str]] = set()

    @property
    def ballot(self) -> Ballot | None:
        """Which attempt is under way."""
        return Ballot(self.attempt.number, self.ctx.me) if self.attempt is not None else None

    def involves(self, peer: PeerId) -> bool:
        """This peer has to average."""
        return self.attempt is not None and peer in self.attempt.participants

    def participants(self) -> Mapping[PeerId, Stage]:
        """Of the attempt at hand, or of the one that was given up last; nobody where there was none."""
        attempt = self.attempt or self._ended
        return attempt.participants if attempt is not None else {}

    def open(self, number: int, present: Mapping[PeerId, Stage], finished: Mapping[PeerId, Finished]) -> None:
        """Ask those that are there, and those credited, to average what the data peers have reported."""
        ctx, participant = self.ctx, self.participant
        ballot = Ballot(number, ctx.me)
        for peer, why in reported_loss(finished)[1].items():
            self._tell_of_loss(peer, why)
        state = (participant.position, ballot, participant.committed)
        known = participant.progress.evaluating.known
        groups = self._without_refused(prepares(*state, present, finished, ctx.stages, evaluations=known))
        asked = {stage: in_rows(prepare, ctx.view, ctx.all_with_all) for stage, prepare in groups.items()}
        self.attempt, self._ended = Attempt(number, asked), None
        self._began_at = ctx.now
        ctx.cancel_timer(Timer.WAIT, "")
        for peer, stage in self.attempt.participants.items():
            ctx.liveness.watch(peer, ctx.out)
            ctx.emit(Send(peer, self.attempt.groups[stage]))
        self._wait()

    def _without_refused(self, groups: dict[Stage, Prepare]) -> dict[Stage, Prepare]:
        """Skipped for those whose gradients are not finite, and for those that have accused each other; else without those
        whose parts were refused."""
        contributors = {stage: _contributors(prepare) for stage, prepare in groups.items()}
        left_out = self._refused.left_out(contributors, self.ctx.me)
        groups = {stage: _without(prepare, left_out.dropped) for stage, prepare in groups.items()}
        skipped_for, out = self._not_finite | left_out.skips_for, tuple(sorted(left_out.peers))
        found = {stage: replace(prepare, left_out=out) for stage, prepare in groups.items()}
        if not all(any(prepare.weights) for prepare in found.values() if prepare.total):
            skipped_for |= left_out.peers  # one of them is the only one of another stage
        if skipped_for:
            return {stage: replace(prepare, skipped_for=tuple(sorted(skipped_for))) for stage, prepare in groups.items()}
        if out or left_out.dropped:
            fields = {"peers": list(out), "dropped": sorted(left_out.dropped)}
            self.ctx.report("left_out", **fields, iteration=self.participant.version)
        return found

    def _tell_of_loss(self, peer: PeerId, why: str) -> None:
        if (peer, why) not in self._told:
            self._told.add((peer, why))
            self.ctx.report("loss_refused", peer=peer, iteration=self.participant.version, reason=why)

    def refuses(self, sender: PeerId, message: NotPrepared) -> None:
        """A participant does not take what another of its group has sent: said in the attempt at hand, or in the one that was
        given up last, of which others may have found the same."""
        attempt, accused = self.attempt or self._ended, message.suspect
        if attempt is None or accused is None or message.attempt != attempt.number or sender == accused:
            return
        group = attempt.groups.get(message.stage)
        if message.iteration == self.participant.version and group is not None and {sender, accused} <= {*group.participants}:
            self._refused.refused(message.stage, sender, accused)
            fields = {"sender": sender, "peer": accused, "iteration": message.iteration, "reason": message.reason}
            self.ctx.report("part_accused", **fields)

    def is_meant(self, message: Prepared | NotPrepared) -> bool:
        """It is of this attempt, not of one before."""
        number = self.attempt.number if self.attempt is not None else None
        return (message.iteration, message.attempt) == (self.participant.version, number)

    def prepared(self, sender: PeerId, message: Prepared) -> str | None:
        """A participant has averaged; returns why the attempt has no future, if it has none."""
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or not self.is_meant(message):
            return None
        attempt.digests[sender] = message.digest
        attempt.squared_norms[sender] = message.squared_norm
        attempt.said[sender] = message
        if not attempt.is_complete or attempt.committed is not None:
            return None
        wrong = attempt.disagreement()
        if wrong:
            return wrong
        ctx.cancel_timer(Timer.AVERAGE, "")
        ctx.timings.observe(ctx.life.average_key("average", message.iteration), ctx.now - self._began_at)
        certificate = certificate_of(attempt.groups[DATA_STAGE], attempt.said)
        attempt.committed = commit_of(attempt.groups[DATA_STAGE], attempt.gradient_norm, certificate)
        for peer in attempt.participants:
            ctx.emit(Send(peer, attempt.committed))
        return None

    def is_not_finite(self, peer: PeerId) -> None:
        """The gradient of this participant is not finite: the next attempt skips the step."""
        self._not_finite.add(peer)

    def forget(self, peer: PeerId) -> None:
        """It is lost, or begins anew: what it had is done by others."""
        self._not_finite.discard(peer)
        self._refused.forget(peer)

    def give_up(self, why: str) -> bool:
        """End it; False when there is nothing to end."""
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or attempt.committed is not None:
            return False
        self.attempt, self._ended = None, attempt
        ctx.report("average_failed", iteration=self.participant.version, reason=why)
        ctx.cancel_timer(Timer.AVERAGE, "")
        for peer in attempt.participants:
            ctx.emit(Send(peer, Abort(self.participant.version, attempt.number)))
        return True

    def late(self) -> None:
        """Ask whoever has not prepared, and send its `Prepare` again."""
        ctx = self.ctx
        if self.attempt is not None:
            for peer in self.attempt.waiting_for():
                ctx.suspect(peer, "average is late")
                ctx.emit(Send(peer, self.attempt.groups[self.attempt.participants[peer]]))
            self._wait()

    def _wait(self) -> None:
        key = self.ctx.life.average_key("average", self.participant.version)
        self.ctx.start_timer(Timer.AVERAGE, "", self.ctx.timings.deadline_s(key, AVERAGE_PRIOR_S))

    def end(self) -> Mapping[PeerId, Stage]:
        """The iteration is over: the participants that this peer has led to its commit, if it has."""
        attempt, self.attempt = self.attempt, None
        self._ended = None
        self._not_finite.clear()
        self._refused.clear()
        self._told.clear()
        return attempt.participants if attempt is not None and attempt.committed is not None else {}


def _contributors(prepare: Prepare) -> frozenset[PeerId]:
    return frozenset(share.participant for share in prepare.shares if share.microbatches)


def _without(prepare: Prepare, dropped: frozenset[PeerId]) -> Prepare:
    """Those that are dropped have empty shares."""
    shares = tuple(share for share in prepare.shares if share.participant not in dropped)
    return replace(prepare, shares=shares) if len(shares) < len(prepare.shares) else prepare
