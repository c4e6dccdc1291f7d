"""What is sent to a data peer: the results of its own microbatches, and in the end the gradients of what it has embedded.

Every offer is answered at once with a verdict. The newest offer counts: a transfer before it may have gone astray. A gradient
credits the peers that did the stages, all of them, and the sender with the first.
"""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase, has_begun
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.finish_iteration import Finishing
from gwtf_p2p.protocol.peer.injecting import Injecting
from gwtf_p2p.protocol.peer.transfers import Transfers
from gwtf_p2p.protocol.wire.messages import SUPERSEDED, Backward, Forward, Superseded, TensorMessage, Verdict

HAS_RESULT = frozenset(
    {Phase.QUEUED_LOSS, Phase.LOSS, Phase.RETURNING, Phase.RECEIVING_GRADIENT, Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE}
)


class DataArrivals:
    """Of one data peer."""

    def __init__(self, context: Context, transfers: Transfers, finishing: Finishing, injecting: Injecting) -> None:
        self.ctx, self.transfers, self.finishing, self.injecting = context, transfers, finishing, injecting

    def verdict_forward(self, sender: PeerId, message: Forward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != self.transfers.return_gradient.stage:
            return ef.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if not has_begun(held, message.attempt):
            return ef.Answer(Verdict.REFUSED, "attempt: not one that this data peer has begun")
        if message.attempt < held.result_attempt:
            ctx.emit(ef.Send(sender, Superseded(held.id, held.result_attempt)))
            return ef.Answer(Verdict.REFUSED, SUPERSEDED)
        if held.phase is Phase.RECEIVING_RESULT:
            ctx.move(held, Phase.TRAVELLING)  # the newest offer counts: the transfer before it may have gone astray
        if held.phase is Phase.TRAVELLING:
            held.handed_by(sender)
            held.result_offered(message.attempt)
            ctx.move(held, Phase.RECEIVING_RESULT)
            ctx.liveness.watch(sender, ctx.out)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_RESULT:
            held.result_offered(message.attempt)
            self.transfers.return_gradient.new_predecessor(held, sender, message.attempt)
            return ef.Answer(Verdict.DUPLICATE)
        return ef.Answer(Verdict.BUSY, f"not travelling: {held.phase.name}")

    def verdict_backward(self, sender: PeerId, message: Backward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != DATA_STAGE:
            return ef.Answer(Verdict.REFUSED, "not a microbatch of this data peer and iteration")
        if len(message.done_by) != ctx.stages or message.done_by[0] != sender:
            return ef.Answer(Verdict.REFUSED, f"done_by: expected {ctx.stages} peers, the sender first")
        if held.phase is Phase.RECEIVING_GRADIENT:
            ctx.move(held, Phase.RETURNING)
        if held.phase is Phase.RETURNING:
            held.gradient_offered(sender)
            ctx.move(held, Phase.RECEIVING_GRADIENT)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in (Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE):
            self.transfers.send_activation.returned(held, sender)
            return ef.Answer(Verdict.DUPLICATE)
        if held.phase is Phase.TRAVELLING:
            self.transfers.repairs.insist(held)
        return ef.Answer(Verdict.BUSY, f"loss is not done: {held.phase.name}")

    def delivered(self, sender: PeerId, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            ctx.emit(ef.Discard(message.microbatch))
        elif isinstance(message, Forward) and held.phase is Phase.RECEIVING_RESULT:
            held.delivered(sender, ctx.now)
            ctx.move(held, Phase.QUEUED_LOSS)
        elif isinstance(message, Backward):
            if held.phase is Phase.RETURNING and held.gradient_from == sender:
                ctx.move(held, Phase.RECEIVING_GRADIENT)  # what broke off was an earlier transfer of this sender's
            if held.phase is Phase.RECEIVING_GRADIENT:
                self._is_back(held, sender, message)

    def _is_back(self, held: Held, sender: PeerId, message: Backward) -> None:
        """The gradient of an embedding is here whole."""
        held.gradient_is_here(message.done_by)
        self.transfers.send_activation.returned(held, sender)
        self.ctx.move(held, Phase.QUEUED_FINISH)
        self.ctx.router.observe_end(held.id, self.ctx.now)
        self.finishing.back(held)
        self.injecting.inject()

    def unheard(self, sender: PeerId, message: TensorMessage) -> None:
        """One that this peer does not listen to offers a tensor: whoever has handed it the microbatch may not know that."""
        held = self.ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Backward):
            self.transfers.repairs.refuse(held, sender, "it is not listened to here")
        elif held.phase is Phase.TRAVELLING:
            self.finishing.elsewhere(held, Stage(self.ctx.stages), sender)

    def broken(self, event: ev.DeliveryBroken) -> None:
        ctx, message = self.ctx, event.message
        held = ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Forward):
            if held.phase is Phase.RECEIVING_RESULT and message.attempt == held.result_attempt:
                ctx.move(held, Phase.TRAVELLING)
                if event.refused:
                    self.finishing.elsewhere(held, Stage(ctx.stages), event.sender)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.gradient_from:
            ctx.move(held, Phase.RETURNING)
            if event.refused:
                self.transfers.repairs.refuse(held, event.sender, event.reason)
            else:
                ctx.suspect(event.sender, f"gradient broke off: {event.reason}")
