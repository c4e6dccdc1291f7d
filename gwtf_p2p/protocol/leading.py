"""The leader: decides what each stage group averages, and commits it when all members have.

The **leader** of an iteration is the live data peer with the lowest id among those that take part in it. When every one of
them has reported `Finished` with its ledger (who did which stage of which microbatch) and nobody credited is lost, it sends
each member of each stage group a `Close`. Members are those credited and the others of the *roster*: all peers known to be at
this iteration, which need the step though nothing is credited to them. A leader that has not led the iteration before does
not know whether somebody else has begun to close this one: it first asks all peers where they stand (`Inquire`, see
`aggregation` for the rule that it follows), and so learns the roster too.

Newcomers, and peers that fell behind, say where they stand; the leader welcomes them into the next attempt, and names donors.
"""

from __future__ import annotations

from gwtf_p2p.protocol.aggregation import Member
from gwtf_p2p.protocol.closing import Attempt, closes
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.events import Send
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.inquiry import Inquiry, Replies, available, common_version, decide, stages_without
from gwtf_p2p.protocol.messages import (
    Abandon,
    Averaged,
    Ballot,
    Commit,
    Finished,
    Inquire,
    Lost,
    Missing,
    NotAveraged,
    Standing,
    Welcome,
)

AVERAGE_PRIOR_S = 3.0
INQUIRY_PRIOR_S = 1.0
FINISH_PRIOR_S = 3.0
"""How long to wait before asking while nothing is measured; these are no time-outs."""

CLOSE_RETRY_S = 0.25

GO_BACK_AFTER_S = 5.0
"""How long a stage may lack the weights of this iteration before the swarm gives up what it has done since it had them: the
last one who has them may be coming back."""

ATTEMPTS_PER_HISTORY = 1 << 20
"""So that no two committed attempts of an iteration have equal numbers, whatever happened between."""


class Leader:
    """Lives in every data peer; acts in the one that leads. `active`: this data peer takes part in the iteration."""

    def __init__(self, context: Context, member: Member) -> None:
        self.ctx, self.member = context, member
        self.active = False
        self.attempt: Attempt | None = None
        self.inquiry: Inquiry | None = None
        self.finished: dict[PeerId, Finished] = {}
        self.roster: dict[PeerId, Stage] = {}
        self.syncing: set[PeerId] = set()
        self.guests: set[PeerId] = set()
        self.gone: set[PeerId] = set()
        self._joiners: dict[PeerId, Standing] = {}
        self._stranded: set[tuple[int, PeerId]] = set()
        self._patience_is_over = False
        self._unsure = True
        self._number = 0
        self._closed_at = 0.0
        self._said: tuple[object, ...] = ()

    # ---- who leads

    def data_peers(self) -> tuple[PeerId, ...]:
        """Those that take part in this iteration and are not lost. Before the first commit: all that are online."""
        return tuple(sorted(self._live(set(self._electorate()) | self.guests | {self.ctx.me})))

    def leading_peer(self) -> PeerId | None:
        """Who came during this iteration does not lead it, as not everybody knows of it."""
        return min(self._live(set(self._electorate())) or self._live(self.guests | {self.ctx.me}), default=None)

    def _electorate(self) -> tuple[PeerId, ...]:
        known, view = self.member.data_peers, self.ctx.view
        if known is not None:
            return known
        return (*(view.data_peers if view is not None else ()), self.ctx.me)

    def _live(self, peers: set[PeerId]) -> set[PeerId]:
        live = {peer for peer in peers - self.gone if not self.ctx.liveness.is_lost(peer)}
        return live if self.active else live - {self.ctx.me}

    @property
    def leads(self) -> bool:
        return self.active and not self.member.out_of_step and self.leading_peer() == self.ctx.me

    # ---- towards an attempt

    def data_peer_finished(self, sender: PeerId, message: Finished) -> None:
        position = (message.history, message.iteration)
        if position == self.member.position:
            self.finished[sender] = message
            for peer in sorted({peer for credit in message.ledger for peer in credit.peers if peer}):
                if self.ctx.liveness.is_lost(peer):
                    self._void(peer, None)
            self.try_close()
        elif position < self.member.position:
            self._show_the_way(sender, None)

    def try_close(self) -> None:
        """Send out a `Close` if all is there; otherwise say what is missing, and ask for it after a while."""
        ctx, version = self.ctx, self.member.version
        if not self.leads or self.attempt is not None or self.inquiry is not None:
            return
        missing = [peer for peer in self.data_peers() if peer not in self.finished]
        doubtful = self._credited() & ctx.liveness.barred
        if missing or doubtful:
            said = (version, tuple(missing), doubtful)
            if self.finished and said != self._said:
                self._said = said
                ctx.report("close_waits", iteration=version, for_data_peers=missing, for_redo=sorted(doubtful))
            if self.finished and not ctx.is_armed("wait", ""):
                ctx.start_timer("wait", "", ctx.timings.deadline_s(("finish",), FINISH_PRIOR_S))
            return
        if not any(finished.ledger for finished in self.finished.values()):
            return
        if self._unsure:
            self._inquire()
        else:
            self._open(self._number + 1)

    def _open(self, number: int) -> None:
        ctx, member = self.ctx, self.member
        self._number = number
        roster = {p: s for p, s in self.roster.items() if not ctx.liveness.is_lost(p) and p not in self.gone}
        finished = {peer: self.finished[peer] for peer in self.data_peers()}
        groups = closes(member.position, Ballot(number, ctx.me), member.committed, roster, finished, ctx.stages)
        self.attempt = Attempt(number, groups)
        self._closed_at = ctx.now
        ctx.cancel_timer("wait", "")
        for peer, stage in self.attempt.members.items():
            ctx.liveness.watch(peer, ctx.out)
            ctx.emit(Send(peer, self.attempt.groups[stage]))
        ctx.start_timer("average", "", ctx.timings.deadline_s(("average",), AVERAGE_PRIOR_S))

    def _credited(self) -> frozenset[PeerId]:
        live = self.data_peers()
        ledgers = [finished.ledger for peer, finished in self.finished.items() if peer in live]
        return frozenset(peer for ledger in ledgers for credit in ledger for peer in credit.peers if peer)

    # ---- an attempt under way

    def averaged(self, sender: PeerId, message: Averaged) -> None:
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or (message.iteration, message.attempt) != (self.member.version, attempt.number):
            return
        attempt.digests[sender] = message.digest
        if attempt.waiting_for() or attempt.committed is not None:
            return
        wrong = attempt.disagreement()
        if wrong:
            self._give_up(wrong)
            return
        ctx.cancel_timer("average", "")
        ctx.timings.observe(("average",), ctx.now - self._closed_at)
        loss = attempt.groups[DATA_STAGE].mean_loss
        attempt.committed = Commit(self.member.version, attempt.number, ctx.me, loss)
        for peer in attempt.members:
            ctx.emit(Send(peer, attempt.committed))

    def not_averaged(self, sender: PeerId, message: NotAveraged) -> None:
        attempt = self.attempt
        if attempt is None or (message.iteration, message.attempt) != (self.member.version, attempt.number):
            return
        if message.missing:
            self._void(sender, frozenset(message.missing))
        if message.suspect is not None:
            self.ctx.suspect(message.suspect, f"{sender} could not average with it: {message.reason}")
        self._give_up(f"{sender}: {message.reason}")

    def _give_up(self, why: str) -> None:
        """End this attempt; the next one follows shortly, or when a redo is done."""
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or attempt.committed is not None:
            return
        self.attempt = None
        ctx.report("average_failed", iteration=self.member.version, reason=why)
        ctx.cancel_timer("average", "")
        for peer in attempt.members:
            if not ctx.liveness.is_lost(peer):
                ctx.emit(Send(peer, Abandon(self.member.version, attempt.number)))
        self._welcome_joiners()
        ctx.start_timer("close", "", CLOSE_RETRY_S)

    def _void(self, peer: PeerId, microbatches: frozenset[MicrobatchId] | None) -> None:
        """A peer does not have (some of) what is credited to it: its data peers must have it redone and report again."""
        for data_peer, finished in sorted(self.finished.items()):
            void: dict[Stage, list[MicrobatchId]] = {}
            for credit in finished.ledger:
                microbatch = MicrobatchId(data_peer, finished.iteration, credit.index)
                for k, credited in enumerate(credit.peers, start=1):
                    if credited == peer and (microbatches is None or microbatch in microbatches):
                        void.setdefault(Stage(k), []).append(microbatch)
            if void:
                del self.finished[data_peer]
            for stage, missing in void.items():
                self.ctx.emit(Send(data_peer, Missing(peer, stage, tuple(missing))))

    def timer(self, what: str) -> None:
        """`average`, `inquire` are late: ask whoever has not answered. `wait`: data peers are late. `close`: try again."""
        ctx, version = self.ctx, self.member.version
        match what:
            case "average" if self.attempt is not None:
                for peer in self.attempt.waiting_for():
                    ctx.suspect(peer, "average is late")
                    ctx.emit(Send(peer, self.attempt.groups[self.attempt.members[peer]]))
                ctx.start_timer("average", "", ctx.timings.deadline_s(("average",), AVERAGE_PRIOR_S))
            case "inquire" if self.inquiry is not None:
                for peer in self.inquiry.waiting_for():
                    ctx.suspect(peer, "an inquiry is late")
                    ctx.emit(Send(peer, Inquire(version, self.inquiry.number)))
                ctx.start_timer("inquire", "", ctx.timings.deadline_s(("inquire",), INQUIRY_PRIOR_S))
            case "wait" if self.leads and self.attempt is None and self.inquiry is None:
                for peer in self.data_peers():
                    if peer not in self.finished:
                        ctx.suspect(peer, "it has not finished")
                        ctx.emit(Send(peer, Inquire(version)))
                if self._unsure:
                    self._inquire()  # an attempt of a leader that is lost may keep somebody from finishing
                self.try_close()
            case "close":
                self.try_close()
            case "back" if self.leads and self._joiners and self.attempt is None and self.inquiry is None:
                self._patience_is_over = True
                self._inquire()
            case _:
                pass

    # ---- where everybody stands

    def _inquire(self) -> None:
        """Bar all lower attempts, and learn of the highest one and of who is at this iteration."""
        ctx, version = self.ctx, self.member.version
        promised = self.member.promised
        self._number = max(self._number, promised.attempt if promised else 0) + 1
        everybody = {ctx.me, *self.data_peers(), *self.roster, *(ctx.view.records if ctx.view else ())}
        self.inquiry = Inquiry(self._number, {peer for peer in everybody if not ctx.liveness.is_lost(peer)})
        for peer in sorted(self.inquiry.asked):
            ctx.emit(Send(peer, Inquire(version, self._number)))
        ctx.start_timer("inquire", "", ctx.timings.deadline_s(("inquire",), INQUIRY_PRIOR_S))

    def _decide_when_known(self) -> None:
        ctx, inquiry, version = self.ctx, self.inquiry, self.member.version
        if inquiry is None or inquiry.waiting_for():
            return
        self.inquiry = None
        ctx.cancel_timer("inquire", "")
        outcome = decide(inquiry, self.member.position, ctx.stages, ctx.me)
        ctx.report("inquired", iteration=version, attempt=inquiry.number, reason=outcome.reason)
        if outcome.commit is not None:
            for peer in outcome.to_commit:
                ctx.emit(Send(peer, outcome.commit))
        if outcome.behind:
            self.member.fall_behind(outcome.reason, self.member.weights)
        elif outcome.refused is not None:
            self._number = max(self._number, outcome.refused.attempt)
            ctx.liveness.heard_from(outcome.refused.leader, ctx.out)
            ctx.start_timer("close", "", CLOSE_RETRY_S)
        elif outcome.commit is None:
            lost = stages_without(version, inquiry.replies, ctx.history, ctx.stages) if self._patience_is_over else []
            self._patience_is_over = False
            why = outcome.reason if outcome.go_back else f"nobody has version {version} of stages {lost}"
            if (outcome.go_back or lost) and self._go_back(inquiry.replies, why):
                return
            self._learn(inquiry.replies)
            self._welcome_joiners()
            self.try_close()

    def _learn(self, replies: Replies) -> None:
        """Who is at this iteration."""
        at = self.member.position
        present = {p: s for p, s in replies.items() if s.position == at and not s.joining and not s.leaving}
        self.roster = {peer: standing.stage for peer, standing in present.items()}
        self.syncing = {peer for peer, standing in present.items() if standing.syncing}
        self.guests |= {peer for peer, standing in present.items() if standing.taking_part}
        self._unsure = False

    def stands(self, sender: PeerId, standing: Standing) -> None:
        """A peer says where it stands: an answer, or a newcomer, or a peer that has doubts."""
        position, attempt = self.member.position, self.attempt
        if self.inquiry is not None and self.inquiry.note(sender, standing, position, self.ctx.me):
            self._decide_when_known()
        if standing.joining:
            self._joins(sender, standing)
        elif standing.leaving:
            self._leaves(sender)
        elif standing.position < position:
            self._show_the_way(sender, standing)
        elif standing.position == position:
            self.gone.discard(sender)
            self.roster[sender] = standing.stage
            (self.syncing.add if standing.syncing else self.syncing.discard)(sender)
            if standing.taking_part:
                self.guests.add(sender)
            elif standing.stage == DATA_STAGE and not standing.syncing and sender not in self.data_peers():
                self._joins(sender, standing)
            refused = standing.promised is not None and attempt is not None and standing.promised.leader != self.ctx.me
            if attempt is not None and sender in attempt.members and (refused or standing.taking_part):
                self._unsure |= refused
                self._give_up(f"{sender} is not free for it")
        if attempt is not None and sender in attempt.members and (standing.joining or standing.position != position):
            self.roster.pop(sender, None)
            self._void(sender, None)
            self._give_up(f"{sender} is not at iteration {position[1]}")

    def _joins(self, sender: PeerId, standing: Standing) -> None:
        """What it had before is gone; it may take part again once it is welcomed."""
        if standing.joining:
            self.gone.add(sender)
            self.roster.pop(sender, None)
            self.guests.discard(sender)
            self.finished.pop(sender, None)
            self._void(sender, None)
        self._joiners[sender] = standing
        self._welcome_joiners()
        self.try_close()

    def _leaves(self, peer: PeerId) -> None:
        self.roster.pop(peer, None)
        self.guests.discard(peer)
        self.gone.add(peer)
        self.try_close()

    def _show_the_way(self, sender: PeerId, standing: Standing | None) -> None:
        """To a peer that is at an earlier iteration: the commit that it missed, or where to catch up."""
        ctx, member = self.ctx, self.member
        missed = standing.close if standing is not None and standing.prepared else None
        if missed is not None and missed.iteration == member.version - 1 and missed.ballot == member.committed:
            ctx.emit(Send(sender, Commit(missed.iteration, missed.attempt, missed.leader, missed.mean_loss)))
            return
        ctx.emit(Send(sender, member.standing()))

    def _welcome_joiners(self) -> None:
        """Into the next attempt: the members of one under way are settled."""
        ctx, version = self.ctx, self.member.version
        if not self._joiners or not self.leads or self.attempt is not None or self.inquiry is not None:
            return
        if self._unsure:
            self._inquire()
            return
        for peer, standing in sorted(self._joiners.items()):
            in_step = standing.position == self.member.position and not standing.syncing
            own = version in available(standing, ctx.history)
            donors = tuple(p for p in self._serving(standing.stage) if p != peer)
            if not donors and not own:
                self._strand(peer, standing)
                continue
            del self._joiners[peer]
            self.gone.discard(peer)
            self.roster[peer] = standing.stage
            (self.syncing.discard if in_step else self.syncing.add)(peer)
            if in_step and standing.stage == DATA_STAGE:
                self.guests.add(peer)
            ctx.emit(Send(peer, Welcome(version, donors, self._electorate(), ctx.history, own)))

    def _strand(self, peer: PeerId, standing: Standing) -> None:
        """Nobody has what this peer lacks. If that stays so for a while, the swarm goes back to what all stages have."""
        ctx, version = self.ctx, self.member.version
        said = (version, peer)
        if said not in self._stranded:
            self._stranded.add(said)
            ctx.report("version_missing", stage=standing.stage, version=version, have=standing.version, peer=peer)
        if not ctx.is_armed("back", ""):
            ctx.start_timer("back", "", GO_BACK_AFTER_S)

    def _go_back(self, replies: Replies, why: str) -> bool:
        """To the newest version that all stages have; False when there is none."""
        ctx = self.ctx
        to = common_version(replies, ctx.history, ctx.stages)
        if to is None:
            ctx.report("no_common_version", iteration=self.member.version, reason=why)
            return False
        ctx.report("going_back", version=to, iteration=self.member.version, history=ctx.history + 1, reason=why)
        data_peers = tuple(sorted(p for p, s in replies.items() if s.stage == DATA_STAGE and not s.leaving))
        having = {peer for peer, standing in replies.items() if to in available(standing, ctx.history)}
        for peer, standing in sorted(replies.items()):
            donors = tuple(sorted(p for p in having - {peer} if replies[p].stage == standing.stage))
            ctx.emit(Send(peer, Welcome(to, donors, data_peers, ctx.history + 1, peer in having)))
        return True

    def _serving(self, stage: Stage) -> list[PeerId]:
        """Peers of a stage that hold the weights of this iteration."""
        able = {peer for peer, own in self.roster.items() if own == stage} - self.syncing - self.gone
        return sorted(peer for peer in able if not self.ctx.liveness.is_lost(peer))

    # ---- other peers, other iterations

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """Tell its neighbours, since a peer lost after its backward is missed by nobody else."""
        attempt = self.attempt
        stage = self.roster.pop(peer, None)
        self._joiners.pop(peer, None)
        self.guests.discard(peer)
        self.finished.pop(peer, None)
        self._void(peer, None)
        if self.leads:
            self._tell_of_loss(peer, stage, reason)
        if attempt is not None and peer in attempt.members:
            self._give_up(f"{peer} is lost: {reason}")
        if self.inquiry is not None:
            self.inquiry.asked.discard(peer)
            self._decide_when_known()
        if self.leads and self._unsure and self.member.closing is not None and self.inquiry is None and self.attempt is None:
            self._inquire()  # the former leader may have committed already
        self.try_close()

    def _tell_of_loss(self, peer: PeerId, stage: Stage | None, reason: str) -> None:
        ctx = self.ctx
        records = ctx.view.records if ctx.view else {}
        if stage is None and peer in records:
            stage = records[peer].stage
        near = {DATA_STAGE} if not stage else {DATA_STAGE, Stage(stage - 1), Stage(stage + 1)}
        others = {p: r.stage for p, r in records.items()} | self.roster
        for other, at in sorted(others.items()):
            if (not stage or at in near) and other not in (ctx.me, peer) and not ctx.liveness.is_lost(other):
                ctx.emit(Send(other, Lost(peer, reason)))

    def peer_returned(self, peer: PeerId) -> None:
        """A lost peer is back: is it still at this iteration?"""
        if self.leads:
            self.ctx.emit(Send(peer, Inquire(self.member.version)))

    def begin(self) -> None:
        """This data peer takes part in an iteration. After a restart nothing is known of the others."""
        if self.member.version > 0 and self.leads and self._unsure and self.inquiry is None:
            self._inquire()

    def new_iteration(self) -> None:
        """Who led the one before knows the members of the next."""
        attempt = self.attempt
        led = attempt is not None and attempt.committed is not None
        members = attempt.members if attempt is not None and led else {}
        self.roster = {p: s for p, s in members.items() if not self.ctx.liveness.is_lost(p) and p not in self.gone}
        self.reset()
        self._unsure = not led
        self._welcome_joiners()

    def reset(self) -> None:
        """Forget an iteration that is over."""
        for what in ("average", "inquire", "wait", "close", "back"):
            self.ctx.cancel_timer(what, "")
        self.attempt = self.inquiry = None
        for known in (self.finished, self.guests, self.gone):
            known.clear()
        if not self.leads:
            self._joiners.clear()
        self._number = self.ctx.history * ATTEMPTS_PER_HISTORY
        self._unsure = True
