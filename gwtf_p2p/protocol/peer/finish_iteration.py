"""The end of a data peer's iteration: its ledger is complete, it reports to the coordinator, and what goes missing is redone.

All microbatches must be done, and every stage of each credited to a peer that has it; what is drawn must have been done again.
A gap is closed by whoever else did that stage, by the peer that was thought lost and is back, or by a redo from the peer before
it (`ledger`, `repair`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gwtf_p2p.protocol.audit.orders import Orders
from gwtf_p2p.protocol.commit.coordinator import FINISH_PRIOR_S, Coordinator
from gwtf_p2p.protocol.core.lifecycle import Held, Phase
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.membership.membership import Membership
from gwtf_p2p.protocol.transfer.ledger import Gap, Ledger
from gwtf_p2p.protocol.transfer.receipts import Receipting
from gwtf_p2p.protocol.transfer.repair import Repairs
from gwtf_p2p.protocol.wire.messages import Done, Finished, Missing, Redo
from gwtf_p2p.protocol.wire.records import PeerState

MOST_ASKED = 32
"""Peers of a stage that are told of a microbatch which one of them, not known here, has handed on."""

REDO_RETRY_S = 1.0
MOST_REDO_DOUBLINGS = 6
"""Between two requests to redo what is missing, and how often that time is doubled: a second request starts anew."""


class Finishing:
    """Of one data peer. `all_injected`: every microbatch of the iteration is on its way, or back. `reported_to` is who has its
    report; None when there is none, or it is not right any more. The ledger of an iteration that is computed ahead is kept as
    that of the one at hand is, and reported when its turn comes."""

    def __init__(
        self,
        membership: Membership,
        coordinator: Coordinator,
        repairs: Repairs,
        orders: Orders,
        all_injected: Callable[[], bool],
    ) -> None:
        self.orders = orders
        self.ctx, self.participant = membership.ctx, membership.participant
        self.membership, self.coordinator, self.repairs, self.all_injected = membership, coordinator, repairs, all_injected
        self._ledgers: dict[int, Ledger] = {}
        self.receipting = Receipting(self.ctx)
        self.reported_to: PeerId | None = None
        self._finished_at: float | None = None
        self._asked_for: set[tuple[int, Gap]] = set()

    @property
    def ledger(self) -> Ledger:
        """Of the iteration at hand."""
        return self._ledger_of(self.participant.version)

    def _ledger_of(self, iteration: int) -> Ledger:
        found = self._ledgers.get(iteration)
        if found is None:
            found = self._ledgers[iteration] = Ledger(self.ctx.me, self.ctx.liveness.is_lost)
        return found

    def clear(self) -> None:
        """Another iteration."""
        ctx, version = self.ctx, self.participant.version
        ctx.cancel_timer(Timer.FINISH, "")
        ctx.cancel_timer(Timer.REDO, "")
        if self._finished_at is not None:
            ctx.timings.observe(("finish",), ctx.now - self._finished_at)
        self._finished_at = self.reported_to = None
        self._ledgers = {i: ledger for i, ledger in self._ledgers.items() if i >= version}
        self._asked_for.clear()
        if any(ledger.has_gaps for ledger in self._ledgers.values()):
            ctx.start_timer(Timer.REDO, "", REDO_RETRY_S)

    def withdraw(self, after: int) -> None:
        """What has been done of iterations after this one is of no use."""
        self._ledgers = {i: ledger for i, ledger in self._ledgers.items() if i <= after}

    # ---- what the ledger learns

    def back(self, held: Held) -> None:
        """The gradient of a microbatch has arrived."""
        ledger = self._ledger_of(held.id.iteration)
        ledger.back(held.id.index, held.done_by)
        self.orders.back(held)
        if ledger.has_gaps:
            self.close_gaps()

    def stands_in(self, sender: PeerId, message: Done) -> None:
        """A replacement did a stage, and others those after it; they are credited if the place is or becomes void."""
        places = list(enumerate((sender, *message.done_by), start=message.stage))
        if not self._is_current(message.microbatch) or not 1 <= message.stage <= self.ctx.stages + 1 - len(places):
            return
        ledger = self._ledger_of(message.microbatch.iteration)
        filled = [ledger.stands_in(message.microbatch.index, Stage(k), peer) for k, peer in places]
        if any(filled):
            self.report()

    def missing(self, sender: PeerId, message: Missing) -> None:
        """A peer lacks what the ledger credits it with; if somebody else says so, it is asked itself. Of a microbatch that is
        still on its way: the next peer does not take what this one hands on."""
        current = [m for m in message.microbatches if self._is_current(m)]
        self.orders.missing(sender, current)
        if sender == message.peer or sender in self.coordinator.roster.data_peers():
            self._void(message, current)
            return
        for microbatch in current:
            held = self.ctx.held.get(microbatch)
            if self._ledger_of(microbatch.iteration).credits_with(microbatch.index, message.stage, message.peer):
                self.ctx.emit(Send(message.peer, Redo(microbatch, message.stage, message.peer)))
            elif held is not None and held.phase is Phase.TRAVELLING and self._is_next(sender, message.stage):
                self.elsewhere(held, message.stage, message.peer)

    def _is_next(self, sender: PeerId, stage: Stage) -> bool:
        """What a peer of this stage hands on would come to the sender: nobody else can say that it is not taken."""
        view = self.ctx.view
        record = view.records.get(sender) if view is not None else None
        return record is not None and record.stage == stage + 1

    def elsewhere(self, held: Held, stage: Stage, peer: PeerId) -> None:
        """The next peer does not take what this one hands on: whoever has handed it there hands it to another one."""
        ctx = self.ctx
        if stage == 1:
            self.repairs.refuse(held, peer, "what it hands on is not taken")
            return
        redo = Redo(held.id, stage, peer, (), held.attempt[0], refused=True)
        before = ctx.view.peers_of_stage(Stage(stage - 1)) if ctx.view is not None else ()
        for other in [other for other in before if not ctx.liveness.is_lost(other)][:MOST_ASKED]:
            ctx.emit(Send(other, redo))

    def _void(self, message: Missing, current: Sequence[MicrobatchId]) -> None:
        """A peer has nothing of what it is credited with."""
        changed = False
        for iteration in sorted({m.iteration for m in current}):
            indices = {m.index for m in current if m.iteration == iteration}
            if self._ledger_of(iteration).void(message.peer, message.stage, indices):
                changed = True
                self._forget_report(iteration)
                of = {(iteration, message.stage, index) for index in indices}
                self._asked_for = {(i, g) for i, g in self._asked_for if (i, g.stage, g.index) not in of}
        if changed:
            self.close_gaps()

    def _forget_report(self, iteration: int) -> None:
        if iteration == self.participant.version:
            self.reported_to = None

    def gone(self, peer: PeerId) -> None:
        """What this peer had of mine is not there any more."""
        self.orders.peer_lost(peer)
        for iteration, ledger in self._ledgers.items():
            if ledger.void(peer):
                self._forget_report(iteration)
        self.close_gaps()

    def _is_current(self, microbatch: MicrobatchId) -> bool:
        is_open = self.ctx.life.is_open(microbatch.iteration, self.participant.version)
        return microbatch.data_peer == self.ctx.me and is_open

    # ---- gaps

    def close_gaps(self) -> None:
        """Have missing stages redone, or (fast recovery) go without them. What is under way is left alone until `late_redo`."""
        ctx, ledgers = self.ctx, sorted(self._ledgers.items())
        for iteration, ledger in ledgers if not ctx.exact else ():
            for index, stage, lost in ledger.drop_gaps():
                microbatch = MicrobatchId(ctx.me, iteration, index)
                ctx.report("dropped", microbatch=str(microbatch), stage=stage, lost=lost)
        new = [each for each in self._gaps() if each not in self._asked_for]
        self._asked_for.update(new)
        for iteration, gap in new:
            self._close_gap(iteration, gap)
        if new:
            tries = max(ledger.most_tries() for _, ledger in ledgers)
            ctx.start_timer(Timer.REDO, "", REDO_RETRY_S * 2 ** min(tries, MOST_REDO_DOUBLINGS))
        if not self.ledger.has_gaps and self.reported_to is None:
            self.report()

    def _gaps(self) -> list[tuple[int, Gap]]:
        """By iteration."""
        return [(iteration, gap) for iteration, ledger in sorted(self._ledgers.items()) for gap in ledger.gaps()]

    def late_redo(self) -> None:
        """It takes long: a request may be lost, or lead to somebody who cannot help, or a peer beside the gap be gone: whoever
        has found that may have thought this one lost, too, and told nobody."""
        for peer in sorted({peer for _, gap in self._gaps() for peer in (gap.before, *gap.ahead)} - {self.ctx.me}):
            self.ctx.suspect(peer, "a redo is late")
        self._asked_for.clear()
        self.close_gaps()

    def _close_gap(self, iteration: int, gap: Gap) -> None:
        ctx, repairs, ledger = self.ctx, self.repairs, self._ledger_of(iteration)
        held = ctx.held[MicrobatchId(ctx.me, iteration, gap.index)]
        # In the epoch of the redos before: others of these have taught it to the peers after the gap.
        redo = Redo(held.id, gap.stage, gap.lost, gap.ahead, held.attempt[0])
        if gap.lost and not ctx.liveness.is_lost(gap.lost) and ledger.ask_back(gap):
            ctx.emit(Send(gap.lost, redo))  # it is back: perhaps it was only silent, and has it still
            return
        if ledger.tries(gap) > 1:
            redo = replace(redo, generation=held.attempt[0] + 1)
        if gap.before == ctx.me:
            repairs.asked_to_redo(redo)
        else:
            held.begin_again(redo.generation, elsewhere=True)
            ctx.emit(Send(gap.before, redo))

    # ---- the report

    def report(self) -> None:
        """Tell the coordinator once all microbatches are done and nothing has to be redone; again when either has changed."""
        ctx, version = self.ctx, self.participant.version
        if not self.all_injected() or self.ledger.has_gaps or self.participant.out_of_step or ctx.holdings.under_way(version):
            return
        coordinator = self.coordinator.roster.coordinator()
        if coordinator is None:
            return
        losses = [held.loss for held in ctx.held.values() if held.loss is not None and held.id.iteration == version]
        if self._finished_at is None:
            self._finished_at = ctx.now
        self.reported_to = coordinator
        mean = sum(losses) / len(losses) if losses else 0.0
        leaving = self.membership.state is PeerState.DRAINING
        ctx.liveness.watch(coordinator, ctx.out)
        lines = self.ledger.credits()
        receipt = self.receipting.receipt(version, lines)
        evaluated = self.participant.progress.evaluating.here
        told = evaluated if evaluated is not None and evaluated.version == version else None
        ctx.emit(Send(coordinator, Finished(version, lines, mean, leaving, ctx.epoch, receipt, told)))
        ctx.start_timer(Timer.FINISH, "", ctx.timings.deadline_s(("finish",), FINISH_PRIOR_S))

    def late(self) -> None:
        """The iteration has not been closed: does the coordinator live, and does it have the report?"""
        if self.reported_to is not None:
            self.ctx.suspect(self.reported_to, "close is late")
        self.report()
