"""`gwtf` as it plans for what users wait for: the time of an iteration (`planner`; DESIGN section 4, last paragraph).

Every data peer plans the microbatches of *all* data peers on its own view and uses its own share: microbatch i takes the
i-th flow of the share, not before the flow's release time. Plans depend on nothing but the views and the seed, so peers that
saw the same views hold the same plan without talking. Rules:

- Planning is work for others than `route`: `planning` returns it as a job when there is something to plan, whoever runs the
  peer runs the job where it disturbs nobody, and `planned` takes the result. One at a time. Until then the earlier plan holds.
- There is something to plan when records have changed what matters for a plan (`pipeline_view.figures_of`), when a peer has
  been lost or has come back, and, a few times for the same figures, when an iteration begins: the search then goes on.
- A flow with relays that are excluded has them replaced by the cheapest way between their neighbours. Repairs, which
  relays ask for, take the cheapest way through the stages asked for among peers with room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId
from gwtf_p2p.protocol.iteration_plan import IterationPlan, plan_for
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.pipeline_view import PipelineFigures, figures_of
from gwtf_p2p.protocol.planner import Effort
from gwtf_p2p.protocol.routers.base import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.routers.cheapest import CheapestWays
from gwtf_p2p.protocol.routers.spare import Injected, SpareCapacity

SEARCHES = 4
"""Iterations at whose begin the search for the same figures goes on."""

PUNCTUAL_S = 1e-6
"""A flow is released when this much or less is missing: timers are not finer."""


class IterationRouter:
    """The router of peer `me`. `flows_changed` counts the flows that came or went with `figures_changed` changes of figures."""

    def __init__(self, me: PeerId, seed: int, effort: Effort | None = None) -> None:
        self.me = me
        self.flows_changed = 0
        self.figures_changed = 0
        self.plans_made = 0
        self._seed, self._effort = seed, effort or Effort()
        self._spare = SpareCapacity()
        self._ways = CheapestWays(me, self._spare)
        self._injected = Injected()
        self._plan: IterationPlan | None = None
        self._reason = "no view yet"
        self._figures: PipelineFigures | None = None
        self._seen: tuple[NetworkView | None, frozenset[PeerId]] = (None, frozenset())
        self._searches = 0
        self._is_due = False
        self._running = False
        self._iteration = -1
        self._began_at = 0.0

    @property
    def plan(self) -> tuple[IterationPlan | None, str]:
        """All data peers' flows by the newest plan, and why they are as they are."""
        return self._plan, self._reason

    # ---- what it learns

    def observe_view(self, view: NetworkView, now: float) -> None:
        self._spare.observe_view(view)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self._spare.observe_hop(hop)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._injected.ended(microbatch)
        self._spare.observe_end(microbatch)

    # ---- planning

    def planning(self, without: frozenset[PeerId]) -> Callable[[], IterationPlan] | None:
        """What there is to plan now, if anything; `without` are peers that must not be used."""
        view = self._spare.view
        if view is None or self._running:
            return None
        if view is not self._seen[0] or without != self._seen[1]:
            self._look(view, without)
        if self._figures is None or not self._is_due:
            return None
        self._is_due = False
        self._running = True
        return partial(plan_for, self._figures, self._effort, self._seed, self._plan)

    def planned(self, plan: IterationPlan) -> None:
        """The result of a job."""
        self._running = False
        self.plans_made += 1
        if self._plan is not None and self._plan.figures != plan.figures:
            self.flows_changed += plan.changed_from(self._plan)
        self._plan, self._reason = plan, plan.reason
        self._spare.promised = Counter(peer for flow in plan.flows for peer in flow.relays)

    def _look(self, view: NetworkView, without: frozenset[PeerId]) -> None:
        """Does what is known now call for a plan?"""
        self._seen = (view, without)
        record = view.records.get(self.me)
        if record is None or record.stage != DATA_STAGE or not record.is_routable:
            return
        figures, why = figures_of(view, without)
        if figures is None:
            self._reason = why
        elif figures != self._figures:
            self.figures_changed += self._figures is not None
            self._figures, self._searches, self._is_due = figures, SEARCHES, True

    # ---- what it answers

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """The flow planned for a new microbatch of this data peer, at its time; otherwise the cheapest way."""
        if self._spare.view is None or request.after not in self._spare.view.records:
            return NoRoute("own record is not in the view yet")
        if not self._injected.is_new(request):
            return self._ways.cheapest(request)
        if self._plan is None:
            return NoRoute(f"no plan yet: {self._reason}")
        if request.microbatch.iteration != self._iteration:
            self._begin(request.microbatch.iteration, now)
        answer = self._planned_flow(request, now)
        if isinstance(answer, Route):
            self._injected.add(request.microbatch)
        return answer

    def _begin(self, iteration: int, now: float) -> None:
        self._iteration, self._began_at = iteration, now
        if self._searches > 0:
            self._searches -= 1
            self._is_due = True

    def _planned_flow(self, request: RouteRequest, now: float) -> Route | NoRoute:
        assert self._plan is not None
        share = self._plan.share_of(self.me)
        if not share:
            return NoRoute("no flow of its own in the plan yet")
        flow = share[request.microbatch.index % len(share)]
        early_s = self._began_at + flow.release_s - now
        if early_s > PUNCTUAL_S:
            return NoRoute(f"planned for {early_s:.3f} s later", early_s)
        if request.excluding & set(flow.relays):
            return self._ways.mended(request, flow.relays)
        return Route(flow.relays, f"planned, expected back at {flow.finish_s:.2f} s of {self._plan.makespan_s:.2f} s")
