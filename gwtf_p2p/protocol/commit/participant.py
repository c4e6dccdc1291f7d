"""One peer's part in closing an iteration: average in the stage group, then one optimizer step, exactly once.

The coordinator sends each participant of each stage group a `Prepare`: the shares to average. A participant first
makes its gradient equal its share: it takes out what it counted but is not credited with (a peer wrongly thought lost, or a
data peer that died), puts back what an earlier attempt took out, and refuses when something is missing. Then the group
averages. Only when all participants of all groups have `Prepared`, with equal digests in each group, is the attempt committed;
participants then step to weights version iteration + 1. Until the commit the accumulated gradients stay untouched, so a failed
attempt costs time and nothing else. A share of n microbatches has weight n (the sum of n gradients over the total is the mean
over all).

**No two attempts of one iteration are ever committed**, though coordinators may die or be wrongly thought dead, because
participants keep a promise (this is Paxos' rule, with all participants of the attempt as its quorum):
- a participant takes part in attempts of one coordinator only, in rising numbers, until another coordinator has asked where it
  stands (`Inquire`) with a higher number; from then on it takes part in nothing lower;
- a coordinator that has asked commits the attempt that all participants it can reach have prepared, if there is one, since it
  may have been committed already; otherwise at least one participant has promised never to prepare it, and a new attempt may
  begin.

A participant that misses a commit (frozen, cut off) is *behind*: it serves nobody, drops what it holds, and catches up
(`membership`). A peer that catches up *follows*: it is a participant with an empty share, keeps the averages of the iterations
that are committed while it downloads the weights of the first of them, and then steps through all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.effects import Average, CancelAverage, Publish, Send, Step
from gwtf_p2p.protocol.events import AverageDone, AverageFailed, Timer, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import (
    Abort,
    Ballot,
    Commit,
    Inquire,
    NotPrepared,
    Prepare,
    Prepared,
    Standing,
)

NO_WEIGHTS = -1
"""Version of weights that belong to no committed iteration."""

AVERAGING_PRIOR_S = 3.0

Correction = tuple[Work, MicrobatchId]
"""UNCOUNT or RECOUNT of one microbatch."""


class Participant:
    """`version`: the iteration that this peer takes part in. `weights`: what its weights are at, equal unless it follows.
    `active`: the swarm lets this data peer take part; `taking_part`: it does, in the iteration at hand."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.version = 0
        self.weights = 0
        self.kept: tuple[int, ...] = ()
        self.counted: set[MicrobatchId] = set()
        self.preparing: Prepare | None = None
        self.prepared = False
        self.averaging = False
        self.stepping = False
        self.promised: Ballot | None = None
        self.committed: Ballot | None = None
        self.joining = True
        self.active = False
        self.taking_part = False
        self.leaving = False
        self.coordinator: Callable[[], PeerId | None] = lambda: None
        self.behind = False
        self._has_fallen_behind = False
        self._has_let_go = False
        self.data_peers: tuple[PeerId, ...] | None = None
        self._awaited_step: int | None = None
        self._digest = ""
        self._pending: list[tuple[int, int]] = []
        self._early: tuple[PeerId, Prepare] | None = None

    @property
    def position(self) -> tuple[int, int]:
        """See `Standing.position`."""
        return self.ctx.epoch, self.version

    @property
    def syncing(self) -> bool:
        """It follows the swarm but lacks the weights."""
        return not self.behind and self.weights != self.version

    @property
    def out_of_step(self) -> bool:
        """This peer must not serve."""
        return self.behind or self.weights != self.version

    @property
    def gradient_is_fixed(self) -> bool:
        """No microbatch may be counted now: its gradient is being corrected, averaged or applied."""
        return self.stepping or (self.preparing is not None and not self.prepared)

    # ---- what this peer is told of itself

    def start_from(self, version: int, kept: tuple[int, ...]) -> None:
        """The program has started with weights of this version; `kept` are the versions that it could restore."""
        self.version = self.weights = version
        self.kept = kept

    def keep(self, versions: tuple[int, ...]) -> None:
        """A checkpoint was written or removed."""
        self.kept = versions

    def be_led_by(self, coordinator: Callable[[], PeerId | None]) -> None:
        """Who leads, as this data peer sees it."""
        self.coordinator = coordinator

    def set_voters(self, data_peers: tuple[PeerId, ...] | None) -> None:
        """The data peers that began the iteration; None before the first commit, when all that are online do."""
        self.data_peers = data_peers

    def set_active(self, active: bool) -> None:
        self.active = active

    def take_part(self, taking_part: bool) -> None:
        self.taking_part = taking_part

    def join(self) -> None:
        """It has found where the swarm is: what it says of itself counts from now on."""
        self.joining = False

    def leave(self) -> None:
        self.leaving = True

    def count(self, microbatch: MicrobatchId) -> None:
        """Its gradient is in the sum."""
        self.counted.add(microbatch)

    def let_go(self) -> bool:
        """True once after all that this peer holds has come to belong to iterations that it has no part in."""
        has_let_go, self._has_let_go = self._has_let_go, False
        return has_let_go

    def fell_behind(self) -> bool:
        """True once after this peer has fallen behind."""
        fell, self._has_fallen_behind = self._has_fallen_behind, False
        return fell

    # ---- what the coordinator asks

    def standing(self) -> Standing:
        return Standing(
            stage=self.ctx.stage,
            version=self.weights if self.behind else self.version,
            committed=self.committed,
            promised=self.promised,
            prepare=self.preparing,
            prepared=self.prepared,
            digest=self._digest if self.prepared else "",
            joining=self.joining or self.behind,
            syncing=self.out_of_step,
            active=self.active,
            taking_part=self.taking_part and not self.out_of_step,
            coordinator=self.coordinator() if self.active and not self.out_of_step else None,
            leaving=self.leaving,
            epoch=self.ctx.epoch,
            kept=self.kept,
        )

    def inquired(self, sender: PeerId, message: Inquire) -> None:
        """Promise to take part in nothing lower, unless something as high was promised to another coordinator."""
        ballot = Ballot(message.attempt, sender)
        asks = message.attempt > 0 and message.iteration == self.version and not self.behind and not self.stepping
        if asks and (self.promised is None or ballot > self.promised):
            self.promised = ballot
            if not self.prepared:
                self.drop_attempt()

    def prepare(self, sender: PeerId, message: Prepare) -> None:
        """Take part in an attempt, or say why not."""
        ctx = self.ctx
        next_one = (message.epoch, message.iteration) == (ctx.epoch, self.version + 1)
        if next_one and (self.stepping or self.prepared) and not self.behind:
            self._early = (sender, message)  # the commit of the iteration before is on its way
            if not self.stepping:
                ctx.emit(Send(sender, self.standing()))
            return
        excluded = self.promised is not None and (
            self.promised.coordinator != sender or message.attempt < self.promised.attempt
        )
        if message.coordinator != sender or ctx.me not in message.participants or self.behind or excluded or self.stepping:
            ctx.emit(Send(sender, self.standing()))
            return
        if (message.epoch, message.iteration) != self.position:
            ctx.emit(Send(sender, self.standing()))
            return
        if self.preparing is not None and self.preparing.ballot == message.ballot:
            if self.prepared:
                self._say_prepared()
            return
        if None not in (message.base, self.committed) and message.base != self.committed:
            self.fall_behind(f"weights of iteration {self.version} come from another average", NO_WEIGHTS)
            return
        self.drop_attempt()
        self.promised = message.ballot
        missing = sorted(message.share_of(ctx.me) - self.counted - self._done())
        if missing:
            failure = NotPrepared(message.iteration, message.attempt, ctx.stage, "missing", None, tuple(missing))
            ctx.emit(Send(sender, failure))
            return
        self.preparing = message

    def _done(self) -> set[MicrobatchId]:
        return {microbatch for microbatch, held in self.ctx.held.items() if held.phase is Phase.DONE}

    # ---- making the gradient equal the share, and averaging it

    def next_correction(self) -> Correction | None:
        """What to take out of the gradient or put back before it can be averaged."""
        if self.preparing is None or self.averaging or self.prepared or self.stepping:
            return None
        share = self.preparing.share_of(self.ctx.me)
        extra = self.counted - share
        if extra:
            return Work.UNCOUNT, min(extra)
        lacking = share - self.counted
        return (Work.RECOUNT, min(lacking)) if lacking else None

    def corrected(self, work: Work, microbatch: MicrobatchId) -> None:
        """A microbatch was taken out of the gradient, or put back."""
        if microbatch.iteration == self.version and not self.behind:
            (self.counted.discard if work is Work.UNCOUNT else self.counted.add)(microbatch)

    def average_when_right(self, gradient_is_busy: bool) -> None:
        """`gradient_is_busy`: a computation under way will change the gradient."""
        if self.preparing is None or self.averaging or self.prepared or self.stepping or gradient_is_busy:
            return
        if self.next_correction() is None:
            self.averaging = True
            self.ctx.emit(Average(self.preparing))
            self.wait_for_average()

    def wait_for_average(self) -> None:
        """For as long as it usually takes; then it is time to ask whether anybody still wants it."""
        self.ctx.start_timer(Timer.AVERAGING, "", self.ctx.timings.deadline_s(("averaging",), AVERAGING_PRIOR_S))

    def average_done(self, event: AverageDone) -> None:
        preparing = self.preparing
        if (
            preparing is None
            or not self.averaging
            or (event.iteration, event.attempt) != (preparing.iteration, preparing.attempt)
        ):
            return
        self.averaging, self.prepared, self._digest = False, True, event.digest
        self.ctx.cancel_timer(Timer.AVERAGING, "")
        self.ctx.timings.observe(("averaging",), event.seconds)
        self._say_prepared()

    def average_failed(self, event: AverageFailed) -> None:
        preparing = self.preparing
        if (
            preparing is None
            or not self.averaging
            or (event.iteration, event.attempt) != (preparing.iteration, preparing.attempt)
        ):
            return
        self.averaging, self.preparing = False, None
        self.ctx.cancel_timer(Timer.AVERAGING, "")
        failure = NotPrepared(preparing.iteration, event.attempt, self.ctx.stage, event.reason, event.suspect)
        self.ctx.emit(Send(preparing.coordinator, failure))

    def _say_prepared(self) -> None:
        preparing = self.preparing
        assert preparing is not None
        said = Prepared(preparing.iteration, preparing.attempt, self.ctx.stage, self._digest)
        self.ctx.emit(Send(preparing.coordinator, said))

    def aborted(self, sender: PeerId, message: Abort) -> None:
        preparing = self.preparing
        if preparing is not None and (message.iteration, Ballot(message.attempt, sender)) == (self.version, preparing.ballot):
            self.drop_attempt()

    def drop_attempt(self) -> None:
        """The gradient may change again."""
        if self.preparing is None or self.stepping:
            return
        self.ctx.cancel_timer(Timer.AVERAGING, "")
        if self.averaging or self.prepared:
            self.ctx.emit(CancelAverage(self.preparing.iteration, self.preparing.attempt))
        self.preparing, self.averaging, self.prepared = None, False, False

    # ---- the commit

    def commit(self, message: Commit) -> None:
        """Step, or find out that the swarm has gone on without this peer."""
        if self.behind or message.iteration < self.version - 1:
            return
        if message.iteration == self.version - 1:
            if self.committed is not None and self.committed != message.ballot:
                self.fall_behind(f"iteration {message.iteration} was committed with another average", NO_WEIGHTS)
            return
        preparing = self.preparing
        ready = message.iteration == self.version and self.prepared and preparing is not None
        if not ready or preparing is None or preparing.ballot != message.ballot:
            self.fall_behind(f"iteration {message.iteration} was committed without this peer", self.weights)
        elif self.stepping:
            return
        elif self.syncing:
            self._pending.append((message.iteration, message.attempt))
            self._next_iteration(preparing)
        else:
            self.stepping = True
            self._step(message.iteration, message.attempt)

    def stepped(self, iteration: int) -> bool:
        """The weights are one version further; True when that ends the iteration that this peer takes part in."""
        if iteration != self._awaited_step:
            return False  # of weights that have been replaced since
        self._awaited_step = None
        self.weights = iteration + 1
        if not self.stepping:
            self._step_pending()
            return False
        assert self.preparing is not None and iteration == self.version
        self._next_iteration(self.preparing)
        return True

    def _next_iteration(self, preparing: Prepare) -> None:
        """Forget the iteration and begin the next."""
        self.version = preparing.iteration + 1
        self.committed, self.data_peers = preparing.ballot, preparing.data_peers
        self.counted.clear()
        self.preparing, self.averaging, self.prepared, self.stepping = None, False, False, False
        self.promised = None
        self.ctx.emit(Publish())
        early, self._early = self._early, None
        if early is not None:
            self.prepare(*early)

    # ---- falling behind and catching up

    def heard(self, sender: PeerId, standing: Standing) -> None:
        """Somebody at a later iteration shows that this peer has missed a commit."""
        if standing.joining or standing.position <= self.position or self.joining or self.behind:
            return
        preparing = self.preparing
        next_one = standing.position == (self.ctx.epoch, self.version + 1)
        if next_one and self.prepared and preparing is not None and standing.committed == preparing.ballot:
            self.commit(Commit(preparing.iteration, preparing.attempt, preparing.coordinator, preparing.mean_loss))
        elif not self.stepping:
            where = f"iteration {standing.version}" + (f" of epoch {standing.epoch}" if standing.epoch else "")
            self.fall_behind(f"{sender} is at {where}", self.weights)

    def fall_behind(self, reason: str, weights: int, is_known: bool = False) -> None:
        """This peer's weights are old, or belong to no version: it must not serve until it has caught up. `is_known`: to whom
        it has to be told (`fell_behind`)."""
        if self.behind:
            return
        self._let_go()
        self.weights = weights
        self.behind, self._has_fallen_behind = True, not is_known
        self.ctx.report("out_of_step", version=self.version, reason=reason)
        self.ctx.emit(Publish())

    def follow(self, iteration: int, epoch: int) -> None:
        """Take part from this iteration on, with an empty share until the weights are here."""
        self._let_go()
        if self.weights == iteration:
            self.weights = NO_WEIGHTS  # they may be right, but the gradient is not empty
        self.version, self.ctx.epoch = iteration, epoch
        self.committed = None
        self.joining = self.behind = self._has_fallen_behind = False

    def _let_go(self) -> None:
        """Nothing that is under way here is of use any more, a step neither."""
        self.drop_attempt()
        self.preparing, self.averaging, self.prepared, self.stepping = None, False, False, False
        self.promised, self._early, self._awaited_step = None, None, None
        self.counted.clear()
        self._pending.clear()
        self._has_let_go = True

    def downloaded(self, version: int) -> bool:
        """False when the weights are of no use: averages between them and the iteration followed are missing."""
        self._pending = [step for step in self._pending if step[0] >= version]
        first = self._pending[0][0] if self._pending else self.version
        if version != first:
            return False
        self.weights = version
        self._step_pending()
        return True

    def _step_pending(self) -> None:
        if self._pending:
            self._step(*self._pending.pop(0))

    def _step(self, iteration: int, attempt: int) -> None:
        self._awaited_step = iteration
        self.ctx.emit(Step(iteration, attempt))
