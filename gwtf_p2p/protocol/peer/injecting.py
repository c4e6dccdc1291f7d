"""Sending the microbatches of an iteration on their way, as the router finds routes, by a plan if it makes one.

What finds no route is tried again after a while, and whenever something may have opened one. Where steps are delayed, the next
iteration begins when all of this one are on their way, one microbatch for each that comes home.
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

HOME = frozenset({Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE})


class Injecting:
    """Of one data peer. `pending` are the indices of what is not on its way yet, of `iteration`; -1: of none."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.pending: list[int] = []
        self.iteration = -1
        self._most = 0
        self._said: tuple[int, tuple[str, ...]] = (-1, ())

    def fill(self, microbatches: int) -> None:
        """An iteration begins with so many, if it has not begun ahead of its time."""
        if self.iteration != self.participant.version:
            self._fill(self.participant.version, microbatches)

    def _fill(self, iteration: int, microbatches: int) -> None:
        self.iteration, self.pending, self._most = iteration, list(range(microbatches)), microbatches

    def go_ahead(self, microbatches: int) -> bool:
        """Begin the next iteration, where steps are delayed and all of this one are on their way; whether it does."""
        life, version = self.ctx.life, self.participant.version
        goes = life.ahead > 0 and self.iteration == version and not self.pending and not life.is_over(version + 1)
        if goes:
            self._fill(version + 1, microbatches)
            self.inject()
        return goes

    def has_all_of(self, iteration: int) -> bool:
        """Nothing of it is to be sent on its way any more."""
        return self.iteration > iteration or not self.pending

    def clear(self) -> None:
        """No more of an iteration that is over go on their way."""
        if self.iteration != self.participant.version:
            self.stop()

    def stop(self) -> None:
        """No more go on their way at all."""
        self.pending.clear()
        self.iteration = -1

    def withdraw(self, after: int) -> None:
        """What has gone on its way of iterations after this one, which this data peer has no part in."""
        for held in self.ctx.in_order() if self.ctx.life.ahead else ():
            if held.id.iteration > after:
                self.ctx.router.observe_end(held.id, self.ctx.now)
                self.ctx.discard(held)

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
            if self.iteration > self.participant.version and self._under_way() >= self._most:
                break  # one that comes home makes room
            microbatch = MicrobatchId(ctx.me, self.iteration, index)
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

    def _under_way(self) -> int:
        """How many have left this peer and are not back."""
        return sum(held.phase not in HOME for held in self.ctx.held.values())
