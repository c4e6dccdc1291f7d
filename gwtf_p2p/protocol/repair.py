"""The way down: handing a microbatch's output to the next stage, and repairing the route when the next peer is lost.

One rule covers every crash of a relay (DESIGN section 5): *whoever handed a microbatch to a lost peer hands it to another
one*, with a higher attempt number, and says which peer comes after it. In steps, when Y of stage k is lost:

1. X of stage k-1 holds its own output. It asks its router for another peer of stage k and pushes the output to Y'.
2. Y' computes the forward of stage k only, and hands its output on to Z, the peer that followed Y (Y told X when it handed
   on; otherwise the planned one).
3. Z already holds the microbatch: it answers DUPLICATE, keeps nothing new, and takes Y' as its predecessor.
4. If Z has computed its backward already, it pushes its stored input gradient to Y'. If not, it will when it has.
5. Y' computes the backward of stage k and pushes to X, which goes on, or, when X has had its gradient before, answers
   DUPLICATE; then Y' tells the data peer whom to credit.

So a forward crash, a backward crash and (with exact recovery) a crash between backward and average are the same repair,
and exactly one stage is computed again. Every wait has a deadline from measured times; when it passes, the peer is asked.
"""

from __future__ import annotations

from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.events import CancelPush, Push, PushAnswered, PushDelivered, Send, Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.messages import Complete, Forward, Superseded, Verdict
from gwtf_p2p.protocol.microbatch import Handoff, Held
from gwtf_p2p.protocol.routers.base import HopObservation, NoRoute, RouteRequest

PUSH_PRIOR_S = 5.0
BACKWARD_PRIOR_S = 5.0
RETRY_S = 0.25
"""Between two searches for a route when there is none; a view change or a finished microbatch also tries again."""


class Handoffs:
    """The downstream side of every microbatch that a peer holds."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._pushes: dict[int, MicrobatchId] = {}

    @property
    def target(self) -> Stage:
        return Stage(self.ctx.stage + 1)

    def begin(self, held: Held) -> None:
        """The output is ready."""
        held.to_handoff(Handoff.ROUTING, self.ctx.now)
        self.route(held)

    def route(self, held: Held) -> None:
        """Choose the next peer and push, or wait for a route."""
        ctx = self.ctx
        if self.target > ctx.stages:
            self._push(held, held.id.data_peer)
            return
        barred = ctx.liveness.lost | ctx.liveness.suspected | held.tried
        if not held.ahead or held.ahead[0] in barred:
            rest = tuple(held.ahead[1:])
            rejoin = rest[0] if rest and rest[0] not in ctx.liveness.lost else None
            last = self.target if rejoin else Stage(ctx.stages)
            answer = ctx.router.route(
                RouteRequest(held.id, ctx.me, self.target, last, frozenset(barred), rejoin), ctx.now
            )
            if isinstance(answer, NoRoute):
                held.note(f"no route: {answer.reason}", ctx.now)
                held.tried.clear()
                ctx.start_timer("route", held.id, RETRY_S)
                return
            held.ahead = answer.peers + (rest if rejoin else ())
        self._push(held, held.ahead[0])

    def retry(self, held: Held) -> None:
        """The retry timer fired, or something changed that may have opened a route."""
        if held.handoff is Handoff.ROUTING:
            self.ctx.cancel_timer("route", held.id)
            self.route(held)

    def answered(self, held: Held, event: PushAnswered) -> None:
        """The verdict of the next peer."""
        ctx, next_peer = self.ctx, held.successor
        if next_peer is None or event.token != held.push_token or held.handoff is not Handoff.PUSHING:
            return
        if event.verdict is Verdict.ACCEPTED:
            return
        if event.verdict is Verdict.DUPLICATE:
            self._accepted(held)
            return
        if event.verdict is Verdict.REFUSED and (event.detail == "superseded" or self.target > ctx.stages):
            held.note(f"{next_peer} does not want it: {event.detail}", ctx.now)
            ctx.discard(held)
            return
        self._observe(held, next_peer, None, event.verdict.name)
        held.tried.add(next_peer)
        ctx.cancel_timer("push", held.id)
        held.to_handoff(Handoff.ROUTING, ctx.now)
        if self.target > ctx.stages:
            ctx.start_timer("route", held.id, RETRY_S)
        else:
            self.route(held)

    def delivered(self, held: Held, event: PushDelivered) -> None:
        """The whole tensor is there."""
        if held.successor is not None and event.token == held.push_token and held.handoff is Handoff.PUSHING:
            self.ctx.timings.observe(("push", held.successor), event.seconds)
            self._accepted(held)

    def failed(self, held: Held, token: int, reason: str) -> None:
        """The transport could not push: suspect the peer and go another way at once."""
        ctx, next_peer = self.ctx, held.successor
        if next_peer is None or token != held.push_token or held.handoff is not Handoff.PUSHING:
            return
        ctx.cancel_timer("push", held.id)
        held.to_handoff(Handoff.ROUTING, ctx.now)
        ctx.suspect(next_peer, f"push failed: {reason}")
        if held.lost_at is None:
            held.lost_at = ctx.now
        if self.target > ctx.stages:
            ctx.start_timer("route", held.id, RETRY_S)
            return
        self._leave(held, next_peer)
        ctx.report("recovery", kind="forward", microbatch=str(held.id), lost=next_peer, reason=reason)
        self.route(held)

    def complete(self, held: Held, sender: PeerId, message: Complete) -> None:
        """The successor has computed its forward and handed on."""
        if sender != held.successor:
            return
        held.beyond = message.successor
        seconds = (self.ctx.timings.median_s(("push", sender)) or 0.0) + message.held_s
        self._observe(held, sender, seconds, "")

    def returned(self, held: Held, sender: PeerId) -> None:
        """The gradient of my output is here, from `sender`, who may have replaced my successor."""
        ctx = self.ctx
        held.successor = sender
        for what in ("push", "backward", "route"):
            ctx.cancel_timer(what, held.id)
        if held.handoff is not Handoff.RETURNED:
            ctx.timings.observe(("backward",), ctx.now - held.handed_on_at)
            held.to_handoff(Handoff.RETURNED, ctx.now)

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """Hand everything that the lost peer had of mine to other peers."""
        waiting = (Handoff.PUSHING, Handoff.AWAITING) + ((Handoff.RETURNED,) if self.ctx.exact else ())
        for held in self.ctx.in_order():
            if held.successor == peer and held.handoff in waiting and self.target <= self.ctx.stages:
                self._repair(held, peer, reason)

    def peer_answered(self, peer: PeerId, unknown: frozenset[MicrobatchId]) -> None:
        """A suspected peer lives: wait on, except for what it does not hold."""
        ctx = self.ctx
        for held in ctx.in_order():
            if held.successor != peer:
                continue
            if held.handoff is Handoff.PUSHING:
                ctx.start_timer("push", held.id, self._push_deadline_s(peer))
            elif held.handoff is Handoff.AWAITING:
                if held.id in unknown:
                    held.note(f"{peer} does not hold it", ctx.now)
                    ctx.cancel_timer("backward", held.id)
                    held.to_handoff(Handoff.ROUTING, ctx.now)
                    self.route(held)
                else:
                    ctx.start_timer("backward", held.id, ctx.timings.deadline_s(("backward",), BACKWARD_PRIOR_S))

    def _repair(self, held: Held, peer: PeerId, reason: str) -> None:
        ctx = self.ctx
        kind = "aggregation" if held.handoff is Handoff.RETURNED else "backward" if held.beyond else "forward"
        if held.handoff is Handoff.PUSHING:
            ctx.emit(CancelPush(held.push_token))
        for what in ("push", "backward"):
            ctx.cancel_timer(what, held.id)
        held.lost_at = ctx.now
        held.to_handoff(Handoff.ROUTING, ctx.now)
        self._leave(held, peer)
        ctx.report("recovery", kind=kind, microbatch=str(held.id), lost=peer, reason=reason)
        self.route(held)

    def _leave(self, held: Held, peer: PeerId) -> None:
        """Bar a peer from this microbatch and keep what is known of the path after it."""
        after = (held.beyond,) if held.beyond else tuple(held.ahead[1:])
        held.ahead = (peer, *after)
        held.tried.add(peer)
        held.attempt += 1
        held.successor = held.beyond = None
        self.ctx.emit(Send(peer, Superseded(held.id)))

    def _push(self, held: Held, peer: PeerId) -> None:
        ctx = self.ctx
        held.push_token = ctx.new_token()
        held.successor, held.beyond = peer, None
        held.handed_on_at = ctx.now
        held.to_handoff(Handoff.PUSHING, ctx.now)
        message = Forward(held.id, held.attempt, self.target, tuple(held.ahead[1:]))
        ctx.liveness.watch(peer, ctx.out)
        ctx.emit(Push(held.push_token, peer, message, Slot.OUTPUT))
        ctx.start_timer("push", held.id, self._push_deadline_s(peer))

    def _accepted(self, held: Held) -> None:
        ctx = self.ctx
        assert held.successor is not None
        ctx.cancel_timer("push", held.id)
        held.tried.clear()
        if held.lost_at is not None:
            ctx.report("recovered", microbatch=str(held.id), seconds=ctx.now - held.lost_at)
            held.lost_at = None
        held.to_handoff(Handoff.AWAITING, ctx.now)
        ctx.start_timer("backward", held.id, ctx.timings.deadline_s(("backward",), BACKWARD_PRIOR_S))
        if ctx.stage > 0:
            ctx.emit(Send(held.predecessor, Complete(held.id, held.successor, held.forward_held_s)))

    def _push_deadline_s(self, peer: PeerId) -> float:
        return self.ctx.timings.deadline_s(("push", peer), PUSH_PRIOR_S)

    def _observe(self, held: Held, peer: PeerId, seconds: float | None, failure: str) -> None:
        ctx = self.ctx
        if self.target <= ctx.stages:
            hop = HopObservation(held.id, ctx.me, peer, self.target, False, seconds, failure)
            ctx.router.observe_hop(hop, ctx.now)
