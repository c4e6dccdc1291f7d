"""Closing an iteration: average in each stage group, then one optimizer step everywhere, exactly once.

The **leader** is the live data peer with the lowest id. When every live data peer has reported `Finished` with its ledger
(who did which stage of which microbatch) and nobody credited is lost, the leader sends each member of each stage group a
`Close`: the shares to average. A **member** first makes its gradient equal its share: it takes out what it counted but is
not credited with (a peer wrongly thought lost, or a data peer that died), puts back what an earlier attempt took out, and
refuses when something is missing. Then the group averages. Only when all members of all groups have `Averaged`, with equal
digests in each group, does the leader `Commit`; members then step to weights version iteration + 1. Until the commit the
accumulated gradients stay untouched, so a failed attempt costs time and nothing else: the leader closes again with a higher
attempt number and other members.

Weights: a share of n microbatches has weight n (the sum of n gradients over the total is the mean over all).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.events import Average, AverageDone, AverageFailed, Publish, Send, Step, Work
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.messages import Averaged, Close, Commit, Finished, Lost, NotAveraged, Share
from gwtf_p2p.protocol.microbatch import Phase

AVERAGE_PRIOR_S = 10.0
CLOSE_RETRY_S = 0.5

Correction = tuple[Work, MicrobatchId]
"""UNCOUNT or RECOUNT of one microbatch."""


class Member:
    """One peer's part in its stage group. `version` is what its weights are at, the iteration that it works on."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.version = 0
        self.counted: set[MicrobatchId] = set()
        self.closing: Close | None = None
        self.leader: PeerId | None = None
        self.out_of_step = False
        self._prepared = 0
        self._to_correct: list[Correction] = []

    def close(self, sender: PeerId, message: Close, under_way: Correction | None) -> list[Correction]:
        """Returns the corrections that the caller has to compute before the gradient equals this peer's share.

        `under_way` is a correction that is being computed for an earlier attempt; it ends first.
        """
        ctx = self.ctx
        if message.iteration != self.version or ctx.me not in message.members:
            reason = f"weights version is {self.version}"
            ctx.emit(Send(sender, NotAveraged(message.iteration, message.attempt, ctx.stage, reason, ctx.me)))
            return []
        if self.closing is not None and message.attempt <= self.closing.attempt:
            return []
        share = next(set(s.microbatches) for s in message.shares if s.member == ctx.me)
        counted = set(self.counted)
        if under_way is not None:
            (counted.discard if under_way[0] is Work.UNCOUNT else counted.add)(under_way[1])
        lacking = share - counted
        missing = tuple(sorted(m for m in lacking if m not in ctx.held or ctx.held[m].phase is not Phase.DONE))
        if missing:
            ctx.emit(Send(sender, NotAveraged(message.iteration, message.attempt, ctx.stage, "missing", None, missing)))
            return []
        self.closing, self.leader, self._prepared = message, sender, 0
        corrections = [(Work.UNCOUNT, m) for m in sorted(counted - share)] + [(Work.RECOUNT, m) for m in sorted(lacking)]
        self._to_correct = [*([under_way] if under_way else []), *corrections]
        self._average_when_right()
        return corrections

    def corrected(self, work: Work, microbatch: MicrobatchId) -> None:
        """A microbatch was taken out of the gradient, or put back."""
        if work is Work.UNCOUNT:
            self.counted.discard(microbatch)
        else:
            self.counted.add(microbatch)
        if (work, microbatch) in self._to_correct:
            self._to_correct.remove((work, microbatch))
            self._average_when_right()

    def _average_when_right(self) -> None:
        if self.closing is not None and not self._to_correct:
            self.ctx.emit(Average(self.closing))

    def average_done(self, event: AverageDone) -> None:
        closing = self.closing
        if closing is None or self.leader is None or event.attempt != closing.attempt:
            return
        self._prepared = event.attempt
        self.ctx.emit(Send(self.leader, Averaged(closing.iteration, event.attempt, self.ctx.stage, event.digest)))

    def average_failed(self, event: AverageFailed) -> None:
        closing = self.closing
        if closing is None or self.leader is None or event.attempt != closing.attempt:
            return
        failure = NotAveraged(closing.iteration, event.attempt, self.ctx.stage, event.reason, event.suspect)
        self.ctx.emit(Send(self.leader, failure))

    def commit(self, message: Commit) -> None:
        """Step, or find out that the swarm has gone on without this peer."""
        if message.iteration < self.version:
            return
        if message.iteration == self.version and self._prepared == message.attempt:
            self.ctx.emit(Step(message.iteration, message.attempt))
            return
        self.fall_behind(f"iteration {message.iteration} was committed without this peer")

    def fall_behind(self, reason: str) -> None:
        """This peer's weights are old: it must not serve until it has caught up."""
        if not self.out_of_step:
            self.out_of_step = True
            self.ctx.report("out_of_step", version=self.version, reason=reason)
            self.ctx.emit(Publish())

    def stepped(self, iteration: int) -> tuple[int, int]:
        """Forget the iteration; returns (microbatches credited to this peer, all in its group)."""
        closing = self.closing
        mine = next((len(s.microbatches) for s in closing.shares if s.member == self.ctx.me), 0) if closing else 0
        total = closing.total if closing else 0
        self.version = iteration + 1
        self.counted.clear()
        self.closing, self._prepared = None, 0
        self.ctx.emit(Publish())
        return mine, total


@dataclass
class Attempt:
    """One try at closing an iteration: who must average, and who has."""

    number: int
    groups: dict[Stage, Close]
    digests: dict[PeerId, str] = field(default_factory=dict)

    @property
    def members(self) -> list[tuple[Stage, PeerId]]:
        return [(stage, member) for stage, close in sorted(self.groups.items()) for member in close.members]

    def waiting_for(self) -> list[PeerId]:
        return [member for _, member in self.members if member not in self.digests]

    def disagreement(self) -> str | None:
        """Names a stage whose members ended with different bytes."""
        for stage, close in sorted(self.groups.items()):
            if len({self.digests[m] for m in close.members if m in self.digests}) > 1:
                return f"members of stage {stage} ended with different averages"
        return None


class Leader:
    """Lives in every data peer; acts in the one that leads."""

    def __init__(self, context: Context, member: Member) -> None:
        self.ctx, self.member = context, member
        self.attempt: Attempt | None = None
        self.finished: dict[PeerId, Finished] = {}
        self._last_group: set[PeerId] = set()
        self._closed_at = 0.0

    def live_data_peers(self) -> tuple[PeerId, ...]:
        view = self.ctx.view
        live = set(view.data_peers if view else ()) - self.ctx.liveness.lost
        return tuple(sorted(live | {self.ctx.me}))

    def leading_peer(self) -> PeerId:
        return self.live_data_peers()[0]

    def data_peer_finished(self, sender: PeerId, message: Finished) -> None:
        if message.iteration == self.member.version:
            self.finished[sender] = message
            self.try_close()

    def try_close(self) -> None:
        """Send out a `Close` if all is there; otherwise say what is missing."""
        ctx = self.ctx
        if self.leading_peer() != ctx.me or self.attempt is not None or ctx.view is None:
            return
        live = self.live_data_peers()
        missing = [peer for peer in live if peer not in self.finished]
        doubtful = (ctx.liveness.lost | ctx.liveness.suspected) & self._credited(live)
        if missing or doubtful:
            ctx.report("close_waits", iteration=self.member.version, for_data_peers=missing, for_redo=sorted(doubtful))
            return
        number = (self.member.closing.attempt if self.member.closing else 0) + 1
        self.attempt = Attempt(number, self._groups(live, number))
        self._closed_at = ctx.now
        for stage, peer in self.attempt.members:
            ctx.liveness.watch(peer, ctx.out)
            ctx.emit(Send(peer, self.attempt.groups[stage]))
        ctx.start_timer("average", self.member.version, self._deadline_s())

    def averaged(self, sender: PeerId, message: Averaged) -> None:
        ctx, attempt = self.ctx, self.attempt
        if attempt is None or message.attempt != attempt.number or message.iteration != self.member.version:
            return
        attempt.digests[sender] = message.digest
        if attempt.waiting_for():
            return
        wrong = attempt.disagreement()
        if wrong:
            self._give_up(wrong)
            return
        ctx.cancel_timer("average", self.member.version)
        ctx.timings.observe(("average",), ctx.now - self._closed_at)
        losses = [self.finished[peer].mean_loss for peer in sorted(self.finished) if peer in self.live_data_peers()]
        commit = Commit(self.member.version, attempt.number, sum(losses) / len(losses))
        self._last_group = {peer for _, peer in attempt.members}
        for _, peer in attempt.members:
            ctx.emit(Send(peer, commit))

    def not_averaged(self, sender: PeerId, message: NotAveraged) -> None:
        if self.attempt is None or message.attempt != self.attempt.number or message.iteration != self.member.version:
            return
        if message.suspect == sender:
            self._last_group.discard(sender)
        elif message.suspect is not None:
            self.ctx.suspect(message.suspect, f"{sender} could not average with it: {message.reason}")
        self._give_up(f"{sender}: {message.reason}")

    def timer(self, what: str) -> None:
        """`average` is late: ask whoever has not answered. `close`: try again."""
        if what == "average" and self.attempt is not None:
            for peer in self.attempt.waiting_for():
                self.ctx.suspect(peer, "average is late")
            self.ctx.start_timer("average", self.member.version, self._deadline_s())
        elif what == "close":
            self.try_close()

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """Tell the members, since a peer lost after its backward is missed by nobody else."""
        ctx = self.ctx
        self._last_group.discard(peer)
        if self.leading_peer() != ctx.me:
            return
        others = set(self._credited(self.live_data_peers())) | (set(self._last_group))
        for member in sorted(others - ctx.liveness.lost - {ctx.me, peer}):
            ctx.emit(Send(member, Lost(peer, reason)))
        if self.attempt is not None and peer in {member for _, member in self.attempt.members}:
            self._give_up(f"{peer} is lost: {reason}")
        else:
            self.try_close()

    def stepped(self) -> None:
        self.attempt = None
        self.finished.clear()

    def _deadline_s(self) -> float:
        return self.ctx.timings.deadline_s(("average",), AVERAGE_PRIOR_S)

    def _credited(self, live: tuple[PeerId, ...]) -> frozenset[PeerId]:
        ledgers = [self.finished[peer].ledger for peer in live if peer in self.finished]
        return frozenset(peer for ledger in ledgers for credit in ledger for peer in credit.peers)

    def _groups(self, live: tuple[PeerId, ...], number: int) -> dict[Stage, Close]:
        ctx, iteration = self.ctx, self.member.version
        assert ctx.view is not None
        shares: dict[Stage, dict[PeerId, list[MicrobatchId]]] = {
            Stage(k): {p: [] for p in self._present(Stage(k))} for k in range(1, ctx.stages + 1)
        }
        shares[DATA_STAGE] = {peer: [] for peer in live}
        for data_peer in live:
            for credit in self.finished[data_peer].ledger:
                microbatch = MicrobatchId(data_peer, iteration, credit.index)
                for k, peer in enumerate((data_peer, *credit.peers)):
                    shares[Stage(k)].setdefault(peer, []).append(microbatch)
        return {
            stage: Close(iteration, number, stage, tuple(Share(p, tuple(sorted(group[p]))) for p in sorted(group)))
            for stage, group in shares.items()
        }

    def _present(self, stage: Stage) -> list[PeerId]:
        """Members that need the step though nothing may be credited to them."""
        view = self.ctx.view
        assert view is not None
        version = self.member.version
        return [
            peer
            for peer in view.peers_of_stage(stage)
            if peer not in self.ctx.liveness.lost
            and (peer in self._last_group or view.records[peer].weights_version == version)
        ]

    def _give_up(self, why: str) -> None:
        """End this attempt; the next one follows shortly, or when a redo is done."""
        self.attempt = None
        self.ctx.report("average_failed", iteration=self.member.version, reason=why)
        self.ctx.cancel_timer("average", self.member.version)
        self.ctx.start_timer("close", self.member.version, CLOSE_RETRY_S)
