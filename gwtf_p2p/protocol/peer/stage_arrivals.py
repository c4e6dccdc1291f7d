"""What is sent to a stage peer: which activations and gradients it takes, and what they are to it.

Every offer is answered at once with a verdict. The newest offer counts: a transfer before it may have gone astray. What is held
already is not taken twice, but whoever offers it may be the one to give its gradient back to (a repair further up).
"""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import HAS_GRADIENT, Held, Phase
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.membership.membership import Membership
from gwtf_p2p.protocol.peer.room import Room
from gwtf_p2p.protocol.peer.transfers import Transfers
from gwtf_p2p.protocol.trust.message_quotas import most_held
from gwtf_p2p.protocol.wire.messages import SUPERSEDED, Backward, Forward, Missing, Superseded, TensorMessage, Verdict
from gwtf_p2p.protocol.wire.records import PeerState


class StageArrivals:
    """Of one stage peer."""

    def __init__(self, membership: Membership, transfers: Transfers, room: Room) -> None:
        self.ctx, self.participant = membership.ctx, membership.participant
        self.membership, self.transfers, self.room = membership, transfers, room

    def verdict_forward(self, sender: PeerId, message: Forward) -> ef.Answer:
        ctx, participant = self.ctx, self.participant
        if message.stage != ctx.stage:
            return ef.Answer(Verdict.REFUSED, f"this peer holds stage {ctx.stage}")
        held = ctx.held.get(message.microbatch)
        if held is not None:
            return self._verdict_again(held, sender, message)
        iteration = message.microbatch.iteration
        newest = participant.version + ctx.life.ahead + (1 if participant.preparing is not None else 0)
        if participant.out_of_step or message.epoch != ctx.epoch or not participant.version <= iteration <= newest:
            if (message.epoch, iteration - ctx.life.ahead) > participant.position:
                self.membership.others.doubt()
            return ef.Answer(Verdict.STALE, f"weights version is {participant.weights}")
        state = self.membership.state
        full = state.value if state is not PeerState.ONLINE else self.room.why_full(iteration) or self._too_many_of(sender)
        if full:
            self.room.refuse(sender, iteration)
            return ef.Answer(Verdict.BUSY, full)
        new = Held(message.microbatch, message.attempt, Phase.RECEIVING, sender, ahead=message.ahead)
        new.note(f"accepted from {sender}, attempt {message.attempt}", ctx.now)
        ctx.holdings.add(new)
        ctx.liveness.watch(new.id.data_peer, ctx.out)
        ctx.liveness.watch(sender, ctx.out)
        return ef.Answer(Verdict.ACCEPTED)

    def _too_many_of(self, sender: PeerId) -> str:
        """Empty while it has not handed more here than honest peers can have (`trust/message_quotas`)."""
        ctx = self.ctx
        data_peers = self.participant.data_peers or (ctx.view.data_peers if ctx.view is not None else ())
        most = most_held(ctx.microbatches, len(data_peers), ctx.life.ahead)
        return f"{most} held of {sender} already" if 0 < most <= ctx.holdings.number_from(sender) else ""

    def _verdict_again(self, held: Held, sender: PeerId, message: Forward) -> ef.Answer:
        """Offered what is held already: a repair further up, or a repeated transfer."""
        if message.attempt < held.attempt:
            self.ctx.emit(ef.Send(sender, Superseded(held.id, held.attempt)))
            return ef.Answer(Verdict.REFUSED, SUPERSEDED)
        restarted = held.offered_again(message.attempt)
        self.ctx.liveness.watch(sender, self.ctx.out)
        if held.phase is Phase.RECEIVING:
            held.handed_by(sender)
            held.go_by(message.ahead)
            self.ctx.cancel_timer(ev.Timer.ORPHAN, held.name)
            return ef.Answer(Verdict.ACCEPTED)
        self.transfers.return_gradient.new_predecessor(held, sender, message.attempt)
        if restarted:
            self.transfers.repairs.walk_again(held)
        return ef.Answer(Verdict.DUPLICATE)

    def verdict_backward(self, sender: PeerId, message: Backward) -> ef.Answer:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None or message.stage != ctx.stage:
            return ef.Answer(Verdict.REFUSED, "not held here")
        if held.phase is Phase.RECEIVING_GRADIENT:
            ctx.move(held, Phase.FORWARDED)  # the newest offer counts: the transfer before it may have gone astray
        if held.phase is Phase.FORWARDED:
            held.gradient_offered(sender)
            ctx.move(held, Phase.RECEIVING_GRADIENT)
            return ef.Answer(Verdict.ACCEPTED)
        if held.phase in HAS_GRADIENT:
            self.transfers.send_activation.returned(held, sender)
            return ef.Answer(Verdict.DUPLICATE)
        return ef.Answer(Verdict.BUSY, f"forward is not done: {held.phase.name}")

    def delivered(self, sender: PeerId, message: TensorMessage) -> None:
        ctx = self.ctx
        held = ctx.held.get(message.microbatch)
        if held is None:
            ctx.emit(ef.Discard(message.microbatch))
        elif isinstance(message, Forward) and held.phase is Phase.RECEIVING:
            held.delivered(sender, ctx.now)
            ctx.move(held, Phase.QUEUED_FORWARD)
        elif isinstance(message, Backward):
            if held.phase is Phase.FORWARDED and held.gradient_from == sender:
                ctx.move(held, Phase.RECEIVING_GRADIENT)  # what broke off was an earlier transfer of this sender's
            if held.phase is Phase.RECEIVING_GRADIENT:
                held.gradient_is_here(message.done_by)
                self.transfers.send_activation.returned(held, sender)
                ctx.move(held, Phase.QUEUED_BACKWARD)

    def unheard(self, sender: PeerId, message: TensorMessage) -> None:
        """One that this peer does not listen to offers a tensor: whoever has handed it the microbatch may not know that."""
        held = self.ctx.held.get(message.microbatch)
        if isinstance(message, Backward):
            if held is not None:
                self.transfers.repairs.refuse(held, sender, "it is not listened to here")
        elif message.stage == self.ctx.stage and held is None:
            self._not_taken(sender, message)

    def _not_taken(self, sender: PeerId, message: Forward) -> None:
        """The data peer has it handed to another peer than the sender. A data peer that sends it itself knows."""
        ctx, view = self.ctx, self.ctx.view
        record = view.records.get(sender) if view is not None else None
        if record is not None and ctx.stage > 1 and record.stage == ctx.stage - 1:
            ctx.emit(ef.Send(message.microbatch.data_peer, Missing(sender, record.stage, (message.microbatch,))))

    def broken(self, event: ev.DeliveryBroken) -> None:
        ctx, message = self.ctx, event.message
        held = ctx.held.get(message.microbatch)
        if held is None:
            return
        if isinstance(message, Forward):
            if held.phase is Phase.RECEIVING and message.attempt == held.attempt:
                ctx.discard(held)
                if event.refused:
                    self._not_taken(event.sender, message)
        elif held.phase is Phase.RECEIVING_GRADIENT and event.sender == held.gradient_from:
            ctx.move(held, Phase.FORWARDED)
            if event.refused:
                self.transfers.repairs.refuse(held, event.sender, event.reason)
            else:
                ctx.suspect(event.sender, f"gradient broke off: {event.reason}")
