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
    report; None when there is none, or it is not right any more."""

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
        self.ledger = Ledger(self.ctx.me, self.ctx.liveness.is_lost)
        self.receipting = Receipting(self.ctx)
        self.reported_to: PeerId | None = None
        self._finished_at: float | None = None
        self._asked_for: set[Gap] = set()

    def clear(self) -> None:
        """Another iteration."""
        ctx = self.ctx
        ctx.cancel_timer(Timer.FINISH, "")
        ctx.cancel_timer(Timer.REDO, "")
        if self._finished_at is not None:
            ctx.timings.observe(("finish",), ctx.now - self._finished_at)
        self._finished_at = self.reported_to = None
        self.ledger.clear()
        self._asked_for.clear()

    # ---- what the ledger learns

    def back(self, held: Held) -> None:
        """The gradient of a microbatch has arrived."""
        self.ledger.back(held.id.index, held.done_by)
        self.orders.back(held)
        if self.ledger.has_gaps:
            self.close_gaps()

    def stands_in(self, sender: PeerId, message: Done) -> None:
        """A replacement did a stage, and others those after it; they are credited if the place is or becomes void."""
        places = list(enumerate((sender, *message.done_by), start=message.stage))
        if not self._is_current(message.microbatch) or not 1 <= message.stage <= self.ctx.stages + 1 - len(places):
            return
        filled = [self.ledger.stands_in(message.microbatch.index, Stage(k), peer) for k, peer in places]
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
            if self.ledger.credits_with(microbatch.index, message.stage, message.peer):
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
        if self.ledger.void(message.peer, message.stage, [m.index for m in current]):
            self.reported_to = None
            indices = {m.index for m in current}
            self._asked_for = {g for g in self._asked_for if g.stage != message.stage or g.index not in indices}
            self.close_gaps()

    def gone(self, peer: PeerId) -> None:
        """What this peer had of mine is not there any more."""
        self.orders.peer_lost(peer)
        if self.ledger.void(peer):
            self.reported_to = None
        self.close_gaps()

    def _is_current(self, microbatch: MicrobatchId) -> bool:
        return microbatch.data_peer == self.ctx.me and microbatch.iteration == self.participant.version

    # ---- gaps

    def close_gaps(self) -> None:
        """Have missing stages redone, or (fast recovery) go without them. What is under way is left alone until `late_redo`."""
        ctx = self.ctx
        if not ctx.exact:
            for index, stage, lost in self.ledger.drop_gaps():
                microbatch = MicrobatchId(ctx.me, self.participant.version, index)
                ctx.report("dropped", microbatch=str(microbatch), stage=stage, lost=lost)
        new = [gap for gap in self.ledger.gaps() if gap not in self._asked_for]
        self._asked_for.update(new)
        for gap in new:
            self._close_gap(gap)
        if new:
            ctx.start_timer(Timer.REDO, "", REDO_RETRY_S * 2 ** min(self.ledger.most_tries(), MOST_REDO_DOUBLINGS))
        if not self.ledger.has_gaps and self.reported_to is None:
            self.report()

    def late_redo(self) -> None:
        """It takes long: a request may be lost, or lead to somebody who cannot help."""
        self._asked_for.clear()
        self.close_gaps()

    def _close_gap(self, gap: Gap) -> None:
        ctx, repairs = self.ctx, self.repairs
        held = ctx.held[MicrobatchId(ctx.me, self.participant.version, gap.index)]
        # In the epoch of the redos before: others of these have taught it to the peers after the gap.
        redo = Redo(held.id, gap.stage, gap.lost, gap.ahead, held.attempt[0])
        if gap.lost and not ctx.liveness.is_lost(gap.lost) and self.ledger.ask_back(gap):
            ctx.emit(Send(gap.lost, redo))  # it is back: perhaps it was only silent, and has it still
            return
        if self.ledger.tries(gap) > 1:
            redo = replace(redo, generation=held.attempt[0] + 1)
            if gap.before != ctx.me:
                held.begin_again(redo.generation)
        if gap.before == ctx.me:
            repairs.asked_to_redo(redo)
        else:
            ctx.emit(Send(gap.before, redo))

    # ---- the report

    def report(self) -> None:
        """Tell the coordinator once all microbatches are done and nothing has to be redone; again when either has changed."""
        ctx = self.ctx
        if not self.all_injected() or ctx.occupancy or self.ledger.has_gaps or self.participant.out_of_step:
            return
        coordinator = self.coordinator.roster.coordinator()
        if coordinator is None:
            return
        losses = [held.loss for held in ctx.held.values() if held.loss is not None]
        if self._finished_at is None:
            self._finished_at = ctx.now
        self.reported_to = coordinator
        mean = sum(losses) / len(losses) if losses else 0.0
        leaving = self.membership.state is PeerState.DRAINING
        ctx.liveness.watch(coordinator, ctx.out)
        version, lines = self.participant.version, self.ledger.credits()
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
