"""The ways of a microbatch through one peer, both of them: what transfers and their timers mean for whom."""

from __future__ import annotations

from typing import assert_never

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import COMPUTING, Held, Phase
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.transfer.rebinding import Rebinding
from gwtf_p2p.protocol.transfer.repair import Repairs
from gwtf_p2p.protocol.transfer.return_gradient import ReturnGradient
from gwtf_p2p.protocol.transfer.send_activation import SendActivation
from gwtf_p2p.protocol.wire.messages import Superseded


class Transfers:
    """Of one peer; `upper_stage` is the stage whose input gradients it hands back."""

    def __init__(self, context: Context, upper_stage: Stage) -> None:
        self.ctx = context
        self.send_activation = SendActivation(context)
        self.repairs = Repairs(context, self.send_activation)
        self.return_gradient = ReturnGradient(context, upper_stage)
        self.rebinding = Rebinding(context, self.send_activation, self.repairs)

    def push_event(self, event: ev.PushAnswered | ev.PushDelivered | ev.PushFailed) -> None:
        """What became of a push, down or back. A push that nobody waits for any more means nothing."""
        ctx = self.ctx
        microbatch, back = ctx.pushes.get(event.token, (None, False))
        held = ctx.held.get(microbatch) if microbatch is not None else None
        if held is None:
            return
        peer = held.predecessor if back else held.successor
        if peer is not None and not isinstance(event, ev.PushFailed):
            ctx.liveness.heard_from(peer, ctx.now, ctx.out)
        match event:
            case ev.PushAnswered():
                (self.return_gradient if back else self.send_activation).answered(held, event)
            case ev.PushDelivered():
                (self.return_gradient if back else self.send_activation).delivered(held, event)
            case ev.PushFailed():
                (self.return_gradient if back else self.repairs).failed(held, event.token, event.reason)

    def timer(self, held: Held, what: ev.MicrobatchTimer) -> None:
        """A wait for something of this microbatch is over."""
        match what:
            case Timer.ROUTE:
                self.send_activation.retry(held)
            case Timer.RETURN:
                self.return_gradient.timer(held)
            case Timer.ORPHAN:
                if held.phase is not Phase.DONE:
                    held.note("nobody has announced itself: dropped", self.ctx.now)
                    self.drop(held)
            case Timer.PUSH | Timer.COMPLETE | Timer.BACKWARD:
                self.send_activation.late(held, what)
            case _:
                assert_never(what)

    def superseded(self, sender: PeerId, message: Superseded) -> None:
        """A higher attempt of a microbatch is under way."""
        if self.repairs.superseded(sender, message):
            self.drop(self.ctx.held[message.microbatch])

    def drop(self, held: Held) -> None:
        """Forget a microbatch, as soon as it is not being computed."""
        if held.phase in COMPUTING:
            held.drop_later()
        else:
            self.ctx.discard(held)
