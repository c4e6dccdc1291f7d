"""The way down: choosing the next peer for a microbatch's output, handing it over, and waiting for what comes back.

What happens when the next peer is lost, forgets or refuses is in `repair`. Every wait has a deadline from measured times;
when it passes, the peer is asked whether it lives and still holds the microbatch, and then waited for again, twice as long.

A microbatch that nobody has room for waits for the first peer that says it has (`CapacityAvailable`). Should that message be
lost, it is offered again after as long as it usually takes.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase, Sending
from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, RouteRequest
from gwtf_p2p.protocol.effects import Push, Send
from gwtf_p2p.protocol.events import PushAnswered, PushDelivered, Slot, Timer, WaitTimer
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.transfer.ledger import NOBODY
from gwtf_p2p.protocol.transfer.unrouted import Unrouted
from gwtf_p2p.protocol.transfer.waits import Waits
from gwtf_p2p.protocol.wire.messages import SUPERSEDED, Complete, Forward, Redo, Superseded, Verdict

RETRY_S = 0.25
"""Between two searches for a route when there is none; a view change or a finished microbatch also tries again. Where
everybody is BUSY, only until it is measured how long it takes to find room."""

WAITING = (Sending.PUSHING, Sending.AWAITING)


class SendActivation:
    """The downstream side of every microbatch that a peer holds."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._planner = context.planner if context.stage > 0 else None
        self.unrouted = Unrouted(context)
        self.waits = Waits(context)

    @property
    def target(self) -> Stage:
        return Stage(self.ctx.stage + 1)

    @property
    def is_last(self) -> bool:
        """The next peer is the microbatch's data peer, which nobody can replace."""
        return self.target > self.ctx.stages

    # ---- choosing the next peer

    def begin(self, held: Held) -> None:
        """The output is ready: a plan may have been revised since the microbatch was sent on its way.

        One that was handed on anew is led to the peers that have it already, whatever the plan says."""
        is_first = not any(held.attempt[1:])
        if self._planner is not None and not self.is_last and is_first:
            held.go_by(self._planner.revised(held.id, self.target) or held.ahead)
        self.unrouted.look(held)
        self.route(held)

    def again(self, held: Held, to: PeerId | None) -> None:
        """Give up what is under way with the next peer, and push anew: to this peer, if it can be had."""
        ctx = self.ctx
        if held.sending is Sending.PUSHING:
            ctx.end_push(held.push_token, cancel=True)
        self.waits.end(held)
        if to is not None:
            held.go_first_to(to)
        self.unrouted.look(held)
        self.route(held)

    def retry(self, held: Held) -> None:
        """The retry timer fired, or something changed that may have opened a route."""
        if held.sending is Sending.ROUTING:
            self.ctx.cancel_timer(Timer.ROUTE, held.name)
            self.route(held)

    def retry_all(self) -> None:
        """A route may have opened for what looks for one."""
        for held in self.unrouted.looking():
            self.retry(held)

    def room(self, peer: PeerId, microbatches: int) -> None:
        """It can take some of what it, or others, had no room for; what is offered to another one now may come back to it.

        One more than it can take is offered: by refusing that, it remembers to tell this peer again."""
        offers = microbatches + 1
        for held in self.unrouted.refused():
            held.may_try(peer)
            if held.sending is Sending.ROUTING and offers > 0:
                offers -= 1
                held.go_first_to(peer)
                self.retry(held)

    def route(self, held: Held) -> None:
        """Choose the next peer and push, or wait for a route."""
        ctx = self.ctx
        if self.is_last:
            if held.id.data_peer in ctx.liveness.excluded:
                ctx.start_timer(Timer.ROUTE, held.name, RETRY_S)
            else:
                self._push(held, held.id.data_peer)
            return
        excluded = ctx.liveness.excluded | held.tried
        if not held.ahead or held.ahead[0] == NOBODY or held.ahead[0] in excluded:
            rest = held.ahead[1:]
            rejoin = rest[0] if rest and not ctx.liveness.is_lost(rest[0]) else None
            last = self.target if rejoin else Stage(ctx.stages)
            answer = ctx.router.route(RouteRequest(held.id, ctx.me, self.target, last, excluded, rejoin), ctx.now)
            if isinstance(answer, NoRoute):
                held.note(f"no route: {answer.reason}", ctx.now)
                held.may_try()
                is_refused = self.unrouted.is_refused(held)
                ctx.start_timer(Timer.ROUTE, held.name, ctx.timings.deadline_s(("room",), RETRY_S) if is_refused else RETRY_S)
                return
            held.go_by(answer.peers + (rest if rejoin else ()))
        self._push(held, held.ahead[0])

    def _push(self, held: Held, peer: PeerId) -> None:
        ctx = self.ctx
        held.pushed_to(peer, ctx.new_push(held, back=False), ctx.now)
        self.unrouted.routed(held)
        held.to_sending(Sending.PUSHING, ctx.now)
        message = Forward(held.id, (*held.attempt, held.hand()), self.target, held.ahead[1:], ctx.epoch)
        ctx.liveness.watch(peer, ctx.out)
        ctx.emit(Push(held.push_token, peer, message, Slot.OUTPUT))
        self.waits.for_push(held)

    # ---- what became of a push

    def answered(self, held: Held, event: PushAnswered) -> None:
        """The verdict of the next peer."""
        ctx, next_peer = self.ctx, held.successor
        if next_peer is None or event.token != held.push_token or held.sending is not Sending.PUSHING:
            return
        if event.verdict is Verdict.ACCEPTED:
            held.taken(ctx.now)
            return
        ctx.end_push(event.token)
        if event.verdict is Verdict.DUPLICATE:
            self._accepted(held)
            return
        if event.verdict is Verdict.REFUSED and (event.detail == SUPERSEDED or self.is_last):
            self._unwanted(held, next_peer, event.detail)
            return
        self._observe(held, next_peer, None, event.verdict.name)
        held.tried_in_vain(next_peer)
        if event.verdict is Verdict.BUSY:
            self.unrouted.refuse(held)
        if event.verdict is Verdict.REFUSED and held.ahead:
            held.go_first_to(NOBODY)  # it is no peer of that stage (any more): waiting for it is no use
        ctx.cancel_timer(Timer.PUSH, held.name)
        self.unrouted.look(held)
        if self.is_last:
            ctx.start_timer(Timer.ROUTE, held.name, RETRY_S)
        else:
            self.route(held)

    def _unwanted(self, held: Held, next_peer: PeerId, why: str) -> None:
        """Somebody else has taken this over. A data peer, whose word counts, insists; what is counted stays."""
        ctx = self.ctx
        held.note(f"{next_peer} does not want it: {why}", ctx.now)
        if held.id.data_peer == ctx.me:
            held.begin_again(held.attempt[0] + 1)
            ctx.cancel_timer(Timer.PUSH, held.name)
            self.unrouted.look(held)
            ctx.start_timer(Timer.ROUTE, held.name, RETRY_S)
        elif held.phase is Phase.DONE:
            ctx.cancel_timer(Timer.PUSH, held.name)
            held.to_sending(Sending.RETURNED, ctx.now)
            if not self.is_last:
                ctx.emit(Send(next_peer, Redo(held.id, self.target, next_peer)))  # its data peer should know
        elif why == SUPERSEDED:
            # By what, its `Superseded` tells, and whether that concerns the peers before as well.
            ctx.cancel_timer(Timer.PUSH, held.name)
            self.unrouted.look(held)
            ctx.start_timer(Timer.ROUTE, held.name, RETRY_S)
        else:
            ctx.discard(held)

    def delivered(self, held: Held, event: PushDelivered) -> None:
        """The whole tensor is there."""
        if held.successor is not None and event.token == held.push_token and held.sending is Sending.PUSHING:
            self.ctx.timings.observe(("push", held.successor), event.seconds)
            held.delivered_whole(held.successor)
            self._accepted(held)

    def _accepted(self, held: Held) -> None:
        ctx = self.ctx
        assert held.successor is not None
        self.unrouted.taken(held)
        held.accepted(ctx.now)
        ctx.end_push(held.push_token)
        ctx.cancel_timer(Timer.PUSH, held.name)
        self.waits.recovered(held)
        held.to_sending(Sending.AWAITING, ctx.now)
        self.waits.for_answer(held, Timer.BACKWARD if self.is_last else Timer.COMPLETE)
        if ctx.stage > 0 and held.phase is not Phase.DONE:
            ctx.emit(Send(held.predecessor, Complete(held.id, held.successor, held.forward_held_s)))

    # ---- waiting for the next peer

    def complete(self, sender: PeerId, message: Complete) -> None:
        """The successor has computed its forward and handed on."""
        ctx, held = self.ctx, self.ctx.held.get(message.microbatch)
        if held is None or sender != held.successor or held.sending not in WAITING:
            return
        if held.sending is Sending.PUSHING:
            self._accepted(held)  # its acknowledgement was lost: it cannot compute what it does not have
        if held.beyond is None and ctx.is_armed(Timer.COMPLETE, held.name):
            ctx.timings.observe(("complete", sender), ctx.now - held.waits_since)
            ctx.cancel_timer(Timer.COMPLETE, held.name)
            held.heard()
            self.waits.for_answer(held, Timer.BACKWARD)
        held.followed_by(message.successor)
        seconds = (ctx.timings.median_s(("push", sender)) or 0.0) + message.held_s
        ctx.timings.observe(("hop",), seconds)
        self._observe(held, sender, seconds, "")

    def late(self, held: Held, what: WaitTimer) -> None:
        """A wait was longer than usual: ask both neighbours, and wait again, longer."""
        ctx = self.ctx
        if held.successor is None or held.sending not in WAITING:
            return
        before = held.ask(ctx.now)
        if held.asked > 2 and held.asked % 2 and ctx.has_answered(held.successor, before):
            # It lives and says that it holds this, so something has gone astray on the way there or back. If it is only
            # slow, it answers that it has it.
            self.again(held, held.successor)
            return
        ctx.suspect(held.successor, f"{what.value} is late")
        if held.predecessor not in (ctx.me, held.successor):
            ctx.suspect(held.predecessor, "a microbatch is late")
        if what is Timer.PUSH:
            self.waits.for_push(held)
        else:
            self.waits.for_answer(held, what)

    def returned(self, held: Held, sender: PeerId) -> None:
        """The gradient of my output is here, from `sender`, who may have replaced my successor."""
        ctx, former = self.ctx, held.successor
        if held.walking and held.sending in (Sending.ROUTING, Sending.PUSHING):
            return  # it will come again when the next peer has answered
        if held.sending is Sending.PUSHING:
            ctx.end_push(held.push_token, cancel=True)
        if held.sending in WAITING and former not in (None, sender) and not self.is_last:
            assert former is not None
            ctx.emit(Send(former, Superseded(held.id, (*held.attempt, held.handed))))
        self.waits.end(held)
        ctx.cancel_timer(Timer.ROUTE, held.name)
        held.returned_by(sender)
        self.waits.recovered(held)
        if held.sending is not Sending.RETURNED:
            if held.phase is not Phase.DONE and held.sending is Sending.AWAITING:
                ctx.timings.observe(("backward",), ctx.now - held.waits_since)
            self.unrouted.routed(held)
            held.to_sending(Sending.RETURNED, ctx.now)

    def stop(self, held: Held) -> None:
        """This redo of a finished microbatch leads nowhere: others have taken it over."""
        if held.sending is Sending.RETURNED:
            return
        if held.sending is Sending.PUSHING:
            self.ctx.end_push(held.push_token, cancel=True)
        self.waits.end(held)
        self.ctx.cancel_timer(Timer.ROUTE, held.name)
        self.unrouted.routed(held)
        held.found()
        held.to_sending(Sending.RETURNED, self.ctx.now)

    def _observe(self, held: Held, peer: PeerId, seconds: float | None, failure: str) -> None:
        ctx = self.ctx
        if not self.is_last:
            hop = HopObservation(held.id, ctx.me, peer, self.target, False, seconds, failure)
            ctx.router.observe_hop(hop, ctx.now)
