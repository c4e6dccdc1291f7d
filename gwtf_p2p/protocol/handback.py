"""The way back: handing a microbatch's input gradient to the peer that sent its input.

This side never looks for another peer: if the predecessor is lost, the peer before it finds a replacement (see `repair`),
which announces itself with a `Forward` of a higher attempt. Until then the gradient is kept. With exact recovery it is
kept until the iteration commits, so that it can be sent again to a replacement.
"""

from __future__ import annotations

from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.events import CancelPush, Push, PushAnswered, PushDelivered, Send, Slot
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.messages import Backward, Done, Superseded, Verdict
from gwtf_p2p.protocol.microbatch import Handback, Held
from gwtf_p2p.protocol.repair import PUSH_PRIOR_S, RETRY_S


class Handbacks:
    """The upstream side of every microbatch that a peer holds. `stage` is S + 1 for a data peer's loss."""

    def __init__(self, context: Context, stage: Stage) -> None:
        self.ctx, self.stage = context, stage

    def begin(self, held: Held) -> None:
        """The input gradient is ready, or there is a new predecessor who needs it."""
        ctx = self.ctx
        if held.handback is Handback.PUSHING:
            ctx.emit(CancelPush(held.return_token))
        held.return_token = ctx.new_token()
        held.to_handback(Handback.PUSHING, ctx.now)
        mine = (ctx.me,) if self.stage <= ctx.stages else ()
        message = Backward(held.id, held.attempt, Stage(self.stage - 1), mine + held.done_by)
        ctx.liveness.watch(held.predecessor, ctx.out)
        ctx.emit(Push(held.return_token, held.predecessor, message, Slot.INPUT_GRADIENT))
        ctx.start_timer("return", held.id, ctx.timings.deadline_s(("push", held.predecessor), PUSH_PRIOR_S))

    def answered(self, held: Held, event: PushAnswered) -> None:
        ctx = self.ctx
        if event.token != held.return_token or held.handback is not Handback.PUSHING:
            return
        if event.verdict is Verdict.DUPLICATE:
            self._held(held)
            if self.stage <= ctx.stages:
                ctx.emit(Send(held.id.data_peer, Done(held.id, self.stage)))
        elif event.verdict is not Verdict.ACCEPTED:
            self._block(held, f"{held.predecessor} answered {event.verdict.name} {event.detail}")

    def delivered(self, held: Held, event: PushDelivered) -> None:
        if event.token == held.return_token and held.handback is Handback.PUSHING:
            self.ctx.timings.observe(("push", held.predecessor), event.seconds)
            self._held(held)

    def failed(self, held: Held, token: int, reason: str) -> None:
        if token == held.return_token and held.handback is Handback.PUSHING:
            self._block(held, f"push failed: {reason}")
            self.ctx.suspect(held.predecessor, f"push failed: {reason}")

    def timer(self, held: Held) -> None:
        """The transfer takes too long, or a blocked one is due for another try."""
        ctx = self.ctx
        if held.handback is Handback.PUSHING:
            ctx.suspect(held.predecessor, "gradient transfer is late")
            ctx.start_timer("return", held.id, ctx.timings.deadline_s(("push", held.predecessor), PUSH_PRIOR_S))
        elif held.handback is Handback.BLOCKED and held.predecessor not in ctx.liveness.lost:
            self.begin(held)

    def peer_lost(self, peer: PeerId) -> None:
        """Wait for the replacement to announce itself."""
        for held in self.ctx.in_order():
            if held.predecessor == peer and held.handback is Handback.PUSHING:
                self.ctx.emit(CancelPush(held.return_token))
                held.to_handback(Handback.BLOCKED, self.ctx.now)
                self.ctx.cancel_timer("return", held.id)

    def new_predecessor(self, held: Held, sender: PeerId, attempt: int) -> None:
        """A replacement of my predecessor offered what I hold: send it the gradient once there is one."""
        ctx = self.ctx
        if held.predecessor not in (sender, ctx.me):
            ctx.emit(Send(held.predecessor, Superseded(held.id)))
        held.note(f"predecessor {held.predecessor} -> {sender}", ctx.now)
        held.predecessor, held.attempt = sender, max(attempt, held.attempt)
        if held.handback is not Handback.IDLE:
            self.begin(held)

    def _held(self, held: Held) -> None:
        self.ctx.cancel_timer("return", held.id)
        held.to_handback(Handback.HELD, self.ctx.now)

    def _block(self, held: Held, why: str) -> None:
        held.note(why, self.ctx.now)
        held.to_handback(Handback.BLOCKED, self.ctx.now)
        self.ctx.start_timer("return", held.id, RETRY_S)
