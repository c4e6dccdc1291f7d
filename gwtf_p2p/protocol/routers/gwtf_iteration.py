"""`gwtf` as it plans for what users wait for: the time of an iteration (`planner`).

Every data peer plans the microbatches of *all* data peers on its own view and uses its own share: microbatch i takes the
i-th flow of the share, when its time has come (`schedule/releases`). Plans depend on nothing but the view and the seed
(`iteration_plan`), so peers that saw the same view hold the same plan without talking. Rules:

- A plan is for a whole iteration; it is taken up when one begins, and published. When peers come or go meanwhile, it is
  *revised*: what is under way stays, by forecast, and stage peers that hand on a microbatch go by what is published then.
- Planning is too long for `route`: `planning` returns a request when there is something to plan, whoever runs the peer has it
  planned where it disturbs nobody, and `planned` takes the plan. An iteration waits for it only when there is no plan, or
  when peers have come or gone: figures that have merely changed are planned for while the earlier plan is used.
- When peers come or go in a swarm that is not large, the next plan is made once all of its own are back: while others finish
  and the iteration is closed, and not when the next one should begin.
- In a large swarm, in which each data peer knows of other losses, all plan with everybody whom the records do not name as lost,
  and whom one alone must not use is replaced: so their plans differ in no more than these.
- There is something to plan when the figures have changed (`pipeline_view.figures_of`), and, when they have not, `SEARCHES`
  times more, once in an iteration: the search then goes on from what is published.
- A repair, which stage peers ask for too, goes by the published flows: all that lead through excluded peers are mended together
  (`iteration_plan.Mended`; in a large swarm those of one stage: `repairs`). Where nothing is published, it takes the cheapest
  way among peers with room.
"""

from __future__ import annotations

from collections import Counter

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.remembered import VIEWS_REMEMBERED, OfViews, Remembered
from gwtf_p2p.protocol.routers.cheapest import CheapestWays
from gwtf_p2p.protocol.routers.spare import SpareCapacity
from gwtf_p2p.protocol.schedule.from_view import figures_of, swarm_of
from gwtf_p2p.protocol.schedule.iteration_plan import Mended, whole_ticks
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS
from gwtf_p2p.protocol.schedule.published import published_flow, published_flows
from gwtf_p2p.protocol.schedule.releases import Releases
from gwtf_p2p.protocol.schedule.repairs import Repairs
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan, PipelineFigures, PlanRequest

SEARCHES = 4
"""Iterations in which the search for the same figures goes on."""

SETTLED_S = 3.0
"""For so long what the data peers have published has to be the same until it is gone on from though it is not one plan: a
revision reaches all of them in less."""

PUNCTUAL_S = 1e-6
"""A flow is released when this much or less is missing: timers are not finer."""

Seen = tuple[NetworkView | None, frozenset[PeerId]]
"""A view, and the peers in it that must not be used."""

_MENDED = OfViews[Mended | None]()
_REPAIRS = Remembered[Repairs](VIEWS_REMEMBERED)


class IterationRouter:
    """The router of peer `me`."""

    def __init__(self, me: PeerId, seed: int) -> None:
        self.me = me
        self._flows_changed = self._updates = self._plans_made = 0
        self._seed = seed
        self._spare = SpareCapacity()
        self._ways = CheapestWays(me, self._spare)
        self._plan: IterationPlan | None = None
        self._next: IterationPlan | None = None
        self._reason = "no view yet"
        self._figures: PipelineFigures | None = None
        self._without: frozenset[PeerId] = frozenset()
        self._seen: Seen = (None, frozenset())
        self._watched: Seen = (None, frozenset())
        self._searches = 0
        self._is_due = self._is_overdue = self._is_running = self._waits = False
        self._said: tuple[float, tuple[tuple[PeerId, tuple[str, ...]], ...]] = (0.0, ())
        self._iteration = self._revises = -1
        self._releases = Releases(me, 0.0)
        self._flows: tuple[int, tuple[str, ...]] = (-1, ())
        self._open: set[MicrobatchId] = set()

    @property
    def plan(self) -> tuple[IterationPlan | None, str]:
        """All data peers' flows by the newest plan, and why they are as they are."""
        return self._next or self._plan, self._reason

    @property
    def flows(self) -> tuple[int, tuple[str, ...]]:
        """The iteration at hand, and this data peer's share of its plan, for its record."""
        return self._flows

    @property
    def counts(self) -> dict[str, int]:
        """Flows that came or went count when the figures had changed: a search that goes on may change what it likes."""
        return {"plans_made": self._plans_made, "flows_changed": self._flows_changed, "record_updates": self._updates}

    # ---- what it learns

    def observe_view(self, view: NetworkView, now: float) -> None:
        self._spare.observe_view(view)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self._spare.observe_hop(hop)
        if hop.seconds is None:
            self._releases.astray(hop.microbatch)
        else:
            self._releases.handed_on(hop.microbatch, now)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._spare.observe_end(microbatch)
        self._releases.handed_on(microbatch, now)
        self._open.discard(microbatch)

    # ---- planning

    def planning(self, without: frozenset[PeerId], now: float) -> PlanRequest | None:
        """What there is to plan now, if anything; `without` are peers that must not be used."""
        self._without = without
        view = self._spare.view
        if self._is_running or view is None:
            return None
        request = self._revision(view, now) or self._search(view, now)
        self._is_running = request is not None
        return request

    def _search(self, view: NetworkView, now: float) -> PlanRequest | None:
        """For the next iteration, once all shares of this one are published: everybody goes on from them, also when they are of
        different plans and stay so, as the first ones of a swarm, whose data peers had not heard of the same peers. When that
        has not come about in an iteration, from what there is."""
        if self._plan is not None:
            if not self._is_due and not self._is_outdated(view):
                return None
            if not self._waits and not self._is_overdue and not self._all_say(view, self._plan, now):
                return None
        self._look()
        if self._figures is None or self._searches == 0:
            return None
        self._searches -= 1
        self._is_due = False
        of_all = None
        if len(view.records) >= MANY_PEERS and view.said_lost != self._without:
            of_all, _ = figures_of(view, view.said_lost)
        return PlanRequest(self._figures, self._seed, published_flows(view), of_all=of_all)

    def _is_outdated(self, view: NetworkView) -> bool:
        """All of its own are back, and peers have come or gone since the next iteration was planned: it would wait for another
        plan, which can be made while this one is closed. A large swarm changes until it begins."""
        plan = self._next or self._plan
        if plan is None or self._open or self._waits or len(view.records) >= MANY_PEERS:
            return False
        self._look()
        is_outdated = self._figures is not None and self._figures.swarm != plan.figures.swarm
        self._searches = max(self._searches, int(is_outdated))
        return is_outdated

    def _all_say(self, view: NetworkView, plan: IterationPlan, now: float) -> bool:
        """Is what is published this plan? Else: what every data peer does in this iteration, for so long that it stays so?"""
        said = tuple((p, view.records[p].flows) for p in view.data_peers)
        planned = tuple((p, plan.published_by(p)) for p in view.data_peers)  # where that differs, flows need not be read
        if said == planned and published_flows(view) == tuple((flow.data_peer, flow.stage_peers) for flow in plan.flows):
            return True
        if said != self._said[1]:
            self._said = (now, said)
        mine = all(view.records[p].flows_iteration == self._iteration for p in view.data_peers)
        return mine and now - self._said[0] >= SETTLED_S

    def _revision(self, view: NetworkView, now: float) -> PlanRequest | None:
        """For this iteration, when peers have come or gone."""
        if self._plan is None or self._waits or (view is self._watched[0] and self._without == self._watched[1]):
            return None
        coordinator = min(view.data_peers, default=self.me)
        since_s = now - self._releases.began_at + (view.link(coordinator, self.me).latency_s if coordinator != self.me else 0.0)
        ticks = whole_ticks(since_s, len(view.records))
        if self._plan.is_revision and ticks <= self._plan.begun_ticks and len(view.records) >= MANY_PEERS:
            return None
        self._watched = (view, self._without)
        if swarm_of(view, self._without) == self._plan.figures.swarm:
            return None
        figures, _ = figures_of(view, self._without)
        if figures is None:
            return None
        self._updates += 1
        self._revises = self._iteration
        return PlanRequest(figures, self._seed, revises=self._plan, begun_ticks=ticks)

    def planned(self, plan: IterationPlan | None) -> None:
        """What was asked for."""
        self._is_running = False
        if plan is None:
            return
        self._plans_made += 1
        self._reason = plan.reason
        if plan.is_revision:
            if self._revises == self._iteration:  # else it has come too late
                self._take_up(plan)
        else:
            self._next = plan

    def _look(self) -> None:
        """Does what is known now call for a plan?"""
        view = self._spare.view
        if view is None or (view is self._seen[0] and self._without == self._seen[1]):
            return
        record = view.records.get(self.me)
        if record is None or record.stage != DATA_STAGE or not record.is_routable:
            return
        self._seen = (view, self._without)
        figures, why = figures_of(view, self._without)
        if figures is None:
            self._figures, self._reason = None, why
        elif figures != self._figures:
            self._updates += self._plan is not None
            self._figures, self._searches = figures, SEARCHES + 1

    def _take_up(self, plan: IterationPlan) -> None:
        if self._plan is not None and self._plan.figures != plan.figures:
            self._flows_changed += plan.changed_from(self._plan)
        self._plan = plan
        self._flows = self._iteration, plan.published_by(self.me)
        self._spare.promised = Counter(peer for flow in plan.flows for peer in flow.stage_peers)

    # ---- what it answers

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """The flow planned for a new microbatch of this data peer, at its time; otherwise the cheapest way."""
        if self._spare.view is None or request.after not in self._spare.view.records:
            return NoRoute("own record is not in the view yet")
        if not request.is_new:
            return self._repaired(request)
        if request.microbatch.iteration != self._iteration and not self._begin(request, now):
            return NoRoute(f"planning: {self._reason}")
        answer = self._planned_flow(request, now)
        if isinstance(answer, Route):
            self._releases.released(request.microbatch, answer.peers[0])
        return answer

    def revised(self, microbatch: MicrobatchId, stage: Stage) -> tuple[PeerId, ...]:
        """The stage peers from `stage` on by what the microbatch's data peer has published for this iteration; empty if
        nothing."""
        view = self._spare.view
        return published_flow(view, microbatch)[stage - 1 :] if view is not None else ()

    def _begin(self, request: RouteRequest, now: float) -> bool:
        """Begin an iteration, unless its plan has to be waited for."""
        self._look()
        plan = self._next or self._plan
        self._is_due, self._is_overdue = True, self._is_due
        self._waits = plan is None or self._figures is None or plan.figures.swarm != self._figures.swarm
        if self._waits:
            self._searches = max(self._searches, 1)  # a revision may have been for other peers than those that are here now
            return False
        assert plan is not None
        self._iteration, self._next = request.microbatch.iteration, None
        self._releases = Releases(self.me, now)
        self._take_up(plan)
        self._open = {MicrobatchId(self.me, self._iteration, n) for n in range(len(plan.share_of(self.me)))}
        return True

    def _planned_flow(self, request: RouteRequest, now: float) -> Route | NoRoute:
        plan = self._plan
        assert plan is not None
        share = plan.share_of(self.me)
        if not share:
            return NoRoute("no flow of its own in the plan")
        flow = share[request.microbatch.index % len(share)]
        early_s = self._releases.due_in_s(plan, flow, now)
        if early_s > PUNCTUAL_S:
            return NoRoute(f"due in {early_s:.3f} s", early_s)
        if request.excluding & set(flow.stage_peers):
            return self._repaired(request)
        return Route(flow.stage_peers, f"planned, expected back at {flow.finish_s:.2f} s of {plan.makespan_s:.2f} s")

    def _repaired(self, request: RouteRequest) -> Route | NoRoute:
        """The stages asked for of the microbatch's flow without excluded peers; the cheapest way when that is unknown."""
        view = self._spare.view
        assert view is not None
        if len(view.records) >= MANY_PEERS:
            repairs, stages = _REPAIRS.of((view,), lambda: Repairs(view)), (request.first_stage, request.last_stage)
            way = repairs.flow_for(request.microbatch, stages, request.excluding)
            return Route(way, "planned, excluded peers replaced") if way is not None else self._ways.cheapest(request)
        mended = _MENDED.of(view, request.excluding, lambda: _mended(view, request.excluding))
        microbatch = request.microbatch
        stage_peers = mended.flow_at(microbatch.data_peer, microbatch.index) if mended is not None else None
        if stage_peers is None:
            return self._ways.cheapest(request)
        return Route(stage_peers[request.first_stage - 1 : request.last_stage], "planned, excluded peers replaced")


def _mended(view: NetworkView, excluding: frozenset[PeerId]) -> Mended | None:
    """What is published, without these; None when a stage has nobody left."""
    figures, _ = figures_of(view, excluding)
    flows = [flow for flow in published_flows(view) if flow[0] not in excluding]
    return Mended(figures, flows) if figures is not None else None
