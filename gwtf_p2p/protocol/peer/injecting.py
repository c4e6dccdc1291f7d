"""Sending the microbatches of an iteration on their way, as the router finds routes, by a plan if it makes one.

What finds no route is tried again after a while, and whenever something may have opened one.
"""

from __future__ import annotations

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Phase
from gwtf_p2p.protocol.core.router import NoRoute, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, Stage
from gwtf_p2p.protocol.transfer.send_activation import RETRY_S
from gwtf_p2p.protocol.view.plans import IterationPlan


class Injecting:
    """Of one data peer. `pending` are the indices of what is not on its way yet."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.pending: list[int] = []
        self._said: tuple[int, tuple[str, ...]] = (-1, ())

    def fill(self, microbatches: int) -> None:
        """An iteration begins with so many."""
        self.pending = list(range(microbatches))

    def clear(self) -> None:
        """No more of this iteration go on their way."""
        self.pending.clear()

    def plan(self) -> None:
        """Have the router's plan made, if it wants one."""
        router = self.ctx.planner
        if router is None:
            return
        liveness = self.ctx.liveness
        request = router.planning(liveness.lost | liveness.back, self.ctx.now)
        if request is not None:
            self.ctx.emit(ef.Plan(request))
        if router.flows != self._said:
            self._said = router.flows
            self.ctx.emit(ef.Publish())

    def planned(self, plan: IterationPlan | None) -> None:
        """The plan is made; None: there is none."""
        router = self.ctx.planner
        if router is not None:
            router.planned(plan)
            if self.pending:
                self.inject()

    def inject(self) -> None:
        """Each that a route is found for goes on its way."""
        ctx = self.ctx
        ctx.cancel_timer(ev.Timer.INJECT, "")
        waits_s: list[float] = []
        for index in list(self.pending):
            microbatch = MicrobatchId(ctx.me, self.participant.version, index)
            request = RouteRequest(microbatch, ctx.me, Stage(1), Stage(ctx.stages), ctx.liveness.excluded, is_new=True)
            answer = ctx.router.route(request, ctx.now)
            if isinstance(answer, NoRoute):
                waits_s.append(RETRY_S if answer.retry_s is None else answer.retry_s)
                if answer.retry_s is None:
                    break  # nor is there one for the others
                continue
            held = Held(microbatch, (ctx.incarnation,), Phase.PENDING, ctx.me, ahead=answer.peers)
            self.pending.remove(index)
            held.note(f"route {' '.join(answer.peers)}: {answer.reason}", ctx.now)
            ctx.holdings.add(held)
            ctx.move(held, Phase.QUEUED_EMBED)
            ctx.report("injected", microbatch=held.name, route=list(answer.peers), reason=answer.reason)
        if waits_s:
            ctx.start_timer(ev.Timer.INJECT, "", min(waits_s))
