"""The way back: handing a microbatch's input gradient to the peer that sent its input.

This side never looks for another peer: if the predecessor is lost, the peer before it finds a replacement (see `repair`),
which announces itself with a `Forward` of a higher attempt. Until then the gradient is kept. With exact recovery it is
kept until the iteration commits, so that it can be sent again to a replacement.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase, Returning
from gwtf_p2p.protocol.effects import Push, Send
from gwtf_p2p.protocol.events import PushAnswered, PushDelivered, Slot, Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.transfer.send_activation import RETRY_S
from gwtf_p2p.protocol.transfer.waits import MOST_PUSH_DOUBLINGS, PUSH_PRIOR_S, WAIT_PRIOR_S
from gwtf_p2p.protocol.wire.messages import Attempt, Backward, Done, Superseded, Verdict


class ReturnGradient:
    """The upstream side of every microbatch that a peer holds. `stage` is S + 1 for a data peer's loss."""

    def __init__(self, context: Context, stage: Stage) -> None:
        self.ctx, self.stage = context, stage

    def begin(self, held: Held) -> None:
        """The input gradient is ready, or there is a new predecessor who needs it."""
        ctx = self.ctx
        if held.returning is Returning.PUSHING:
            ctx.end_push(held.return_token, cancel=True)
        held.return_with(ctx.new_push(held, back=True))
        held.to_returning(Returning.PUSHING, ctx.now)
        done_by = (ctx.me, *held.done_by) if self.stage <= ctx.stages else ()
        message = Backward(held.id, held.attempt, Stage(self.stage - 1), done_by)
        ctx.liveness.watch(held.predecessor, ctx.out)
        ctx.emit(Push(held.return_token, held.predecessor, message, Slot.INPUT_GRADIENT))
        self._start_timer(held)

    def answered(self, held: Held, event: PushAnswered) -> None:
        ctx = self.ctx
        if event.token != held.return_token or held.returning is not Returning.PUSHING or event.verdict is Verdict.ACCEPTED:
            return
        ctx.end_push(event.token)
        if event.verdict is Verdict.DUPLICATE:
            self._held(held)
            if self.stage <= ctx.stages:
                ctx.emit(Send(held.id.data_peer, Done(held.id, self.stage, held.done_by)))
            return
        self._block(held, f"{held.predecessor} answered {event.verdict.name} {event.detail}")
        if event.verdict is not Verdict.BUSY:
            # It does not hold the microbatch (any more). Whoever does will announce itself.
            ctx.cancel_timer(Timer.RETURN, held.name)

    def delivered(self, held: Held, event: PushDelivered) -> None:
        if event.token == held.return_token and held.returning is Returning.PUSHING:
            self.ctx.timings.observe(("push", held.predecessor), event.seconds)
            held.returned(held.predecessor)
            self._held(held)

    def failed(self, held: Held, token: int, reason: str) -> None:
        if token == held.return_token and held.returning is Returning.PUSHING:
            self._block(held, f"push failed: {reason}")
            self.ctx.suspect(held.predecessor, f"push failed: {reason}", broken=True)

    def timer(self, held: Held) -> None:
        """The transfer takes too long, or a blocked one is due for another try."""
        ctx = self.ctx
        if held.returning is Returning.PUSHING:
            before = held.ask(ctx.now)
            if held.asked % 2 == 0 and ctx.has_answered(held.predecessor, before):
                self.begin(held)  # since it was asked, so this transfer has gone astray
                return
            ctx.suspect(held.predecessor, "gradient transfer is late")
            self._start_timer(held)
        elif held.returning is Returning.BLOCKED and not ctx.liveness.is_lost(held.predecessor):
            self.begin(held)

    def peer_lost(self, peer: PeerId) -> None:
        """Wait for the replacement to announce itself; whoever holds a slot for it does not wait for ever."""
        ctx = self.ctx
        for held in ctx.holdings.got_from(peer):
            if held.returning is Returning.PUSHING:
                ctx.end_push(held.return_token, cancel=True)
                held.to_returning(Returning.BLOCKED, ctx.now)
                ctx.cancel_timer(Timer.RETURN, held.name)
            self.orphaned(held)

    def orphaned(self, held: Held) -> None:
        """The predecessor is gone or has another successor: unless somebody announces itself, this work is for nothing."""
        ctx = self.ctx
        if ctx.stage > 0 and held.phase is not Phase.DONE and not ctx.is_armed(Timer.ORPHAN, held.name):
            ctx.start_timer(Timer.ORPHAN, held.name, ctx.timings.deadline_s(("backward",), WAIT_PRIOR_S))

    def peer_answered(self, peer: PeerId, unknown: frozenset[MicrobatchId]) -> None:
        """A suspected or lost peer lives: what could not be handed back to it can, unless it does not know of it."""
        for held in self.ctx.holdings.got_from(peer):
            if held.id in unknown:
                self.orphaned(held)
            elif held.returning is Returning.BLOCKED:
                self.begin(held)

    def new_predecessor(self, held: Held, sender: PeerId, attempt: Attempt) -> None:
        """A replacement of my predecessor offered what I hold: send it the gradient once there is one."""
        ctx = self.ctx
        former = held.predecessor
        if former not in (sender, ctx.me):
            ctx.emit(Send(former, Superseded(held.id, attempt[:-1])))
        ctx.cancel_timer(Timer.ORPHAN, held.name)
        held.note(f"predecessor {former} -> {sender}", ctx.now)
        held.handed_by(sender)
        under_way = held.returning is Returning.PUSHING and former == sender
        if held.returning is not Returning.IDLE and not under_way:
            held.heard()
            self.begin(held)

    def _held(self, held: Held) -> None:
        held.heard()
        self.ctx.end_push(held.return_token)
        self.ctx.cancel_timer(Timer.RETURN, held.name)
        held.to_returning(Returning.HELD, self.ctx.now)

    def _block(self, held: Held, why: str) -> None:
        held.note(why, self.ctx.now)
        self.ctx.end_push(held.return_token)
        held.to_returning(Returning.BLOCKED, self.ctx.now)
        self.ctx.start_timer(Timer.RETURN, held.name, RETRY_S)

    def _start_timer(self, held: Held) -> None:
        deadline_s = self.ctx.timings.deadline_s(("push", held.predecessor), PUSH_PRIOR_S)
        self.ctx.start_timer(Timer.RETURN, held.name, deadline_s * 2 ** min(held.asked, MOST_PUSH_DOUBLINGS))
