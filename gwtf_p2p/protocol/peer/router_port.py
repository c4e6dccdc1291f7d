"""The part of a peer's machine that lets a router negotiate: its messages, its ticks, who is lost, and what it publishes.

Of a router that does not talk (`routers.base.TalkingRouter`) it does nothing.
"""

from __future__ import annotations

from typing import get_args

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Publish, Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import ControlMessage
from gwtf_p2p.protocol.wire.negotiation_messages import NegotiationMessage

_KINDS = get_args(NegotiationMessage)


class Negotiating:
    """Between one machine and its router. `messages` counts what the router has said."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.router = context.talker
        self.messages = 0
        self._lost: frozenset[PeerId] = frozenset()
        self._flows = 0

    def heard(self, sender: PeerId, message: ControlMessage) -> bool:
        """False when the message is none of a router's."""
        if self.router is None or not isinstance(message, _KINDS):
            return False
        self.router.hear(sender, message, self.ctx.now)
        return True

    def tick(self) -> None:
        """The timer has fired."""
        if self.router is None:
            return
        self.router.tick(self.ctx.now)
        if self.router.news() is not None:
            self.ctx.emit(Publish())

    def passed(self, microbatch: MicrobatchId) -> None:
        if self.router is not None:
            self.router.passed(microbatch)

    def say(self) -> None:
        """After every event: send what the router wants to say, and tell of flows that came or went."""
        ctx, router = self.ctx, self.router
        if router is None or ctx.view is None:
            return
        if ctx.liveness.lost != self._lost:
            self._lost = ctx.liveness.lost
            router.lost(self._lost, ctx.now)
        for to, message in router.take_out():
            self.messages += 1
            ctx.emit(Send(to, message))
        if router.flow_count != self._flows:
            self._flows = router.flow_count
            ctx.report("flows", count=self._flows)
        if not ctx.is_armed(Timer.NEGOTIATE, ""):
            ctx.start_timer(Timer.NEGOTIATE, "", router.tick_s)
