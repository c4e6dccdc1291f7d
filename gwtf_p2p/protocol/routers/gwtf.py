"""`gwtf --cost paper`: flows computed locally from the records (the cost of a hop: GWTF, arXiv 2509.21221).

Every data peer plans the flows of *all* data peers on its own view and takes its own share. The plan depends on nothing but
the views (sorted ids, integer costs, explicit ties), so peers that saw the same views hold the same plan without talking;
where views differ, the stage peer's verdict decides. Rules:

- A flow carries one microbatch at a time. `route` at the data peer hands out the cheapest free flow, `observe_end` frees it.
- When the stage peers cannot carry all demands, these are cut in proportion first (`plan.with_fair_demands`): an iteration ends
  only when every data peer's microbatches are back. A data peer without any flow sends one microbatch at a time through
  whatever room the records show.
- A repair (an exclusion, or any request from a stage peer) takes the cheapest way through the stages asked for among peers with
  room, on to `rejoin` or to the data peer. It changes this microbatch's route, not the plan: the plan follows the records.
- Planning is lazy: a view is only noted, and the plan is brought up to date (`plan.Planner`: kept, repaired or made anew) when
  a flow is wanted or shown. Stage peers, which only repair, never plan.

The paper's linear cost (`costs`) knows neither queues nor how long a slot is held: `gwtf_iteration`, the default, does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.flow.multi_commodity import Effort
from gwtf_p2p.protocol.flow.plan_keeper import Flow, Plan, Planner, with_fair_demands
from gwtf_p2p.protocol.flow.problem import problem_of_view
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.routers.cheapest import CheapestWays, stages_of
from gwtf_p2p.protocol.routers.spare import SpareCapacity
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.view.network_view import NetworkView

COSTS = ("iteration", "paper")


@dataclass(frozen=True, slots=True)
class GwtfConfig(RouterSettings):
    """`cost`: what a plan makes least, the time of an iteration or the paper's linear cost. `moves`: stage peers change to the
    stage that is the bottleneck (`moving`)."""

    cost: str = "iteration"
    moves: bool = False

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost: expected one of {', '.join(COSTS)}, got {self.cost!r}")

    @property
    def queues_inputs(self) -> bool:
        """Stage peers take inputs that have to wait for a slot: the plan says how many wait, and where."""
        return self.cost == "iteration"


class GwtfRouter:
    """The router of peer `me`. `planner` counts its plans and how many flows they changed."""

    def __init__(self, me: PeerId, effort: Effort | None = None) -> None:
        self.me = me
        self.planner = Planner(effort)
        self._spare = SpareCapacity()
        self._ways = CheapestWays(me, self._spare)
        self._is_stale = False
        self._in_use: dict[MicrobatchId, tuple[PeerId, ...]] = {}

    @property
    def plan(self) -> tuple[Plan, str]:
        """All data peers' flows by the newest view, and why they are as they are."""
        if self._is_stale and self._spare.view is not None:
            self.planner.update(with_fair_demands(problem_of_view(self._spare.view)))
            self._is_stale = False
            self._spare.promised = Counter(peer for flow in self.planner.plan.flows for peer in flow.stage_peers)
        return self.planner.plan, self.planner.reason

    # ---- what it learns

    def observe_view(self, view: NetworkView, now: float) -> None:
        self._is_stale = True
        self._spare.observe_view(view)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self._spare.observe_hop(hop)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._in_use.pop(microbatch, None)
        self._spare.observe_end(microbatch)

    # ---- what it answers

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """A whole flow for a new microbatch of this data peer; otherwise the cheapest way for the stages asked for."""
        if self._spare.view is None or request.after not in self._spare.view.records:
            return NoRoute("own record is not in the view yet")
        if not request.is_new:
            return self._ways.cheapest(request)
        return self._inject(request)

    def _inject(self, request: RouteRequest) -> Route | NoRoute:
        plan, reason = self.plan
        share = plan.share_of(self.me)
        if not share:
            return self._borrow(request, reason)
        free = _less(share, tuple(self._in_use.values()))
        if not free:
            return NoRoute(f"all {len(share)} flows are in use")
        flow = next((f for f in free if not request.excluding & set(f.stage_peers)), None)
        if flow is not None:
            self._in_use[request.microbatch] = flow.stage_peers
            return Route(flow.stage_peers, f"flow of {flow.cost_us} us, {len(free)} of {len(share)} free")
        answer = self._ways.mended(request, free[0].stage_peers)
        if isinstance(answer, Route):
            self._in_use[request.microbatch] = free[0].stage_peers
        return answer

    def _borrow(self, request: RouteRequest, reason: str) -> Route | NoRoute:
        if self._in_use:
            return NoRoute(f"no flow of its own, one microbatch under way: {reason}")
        if not all(self._spare.able(stage, request.excluding)[1] for stage in stages_of(request)):
            return NoRoute(f"no flow of its own, and no room in the records: {reason}")
        answer = self._ways.cheapest(request)
        if isinstance(answer, Route):
            self._in_use[request.microbatch] = ()
        return answer


def _less(share: tuple[Flow, ...], used: tuple[tuple[PeerId, ...], ...]) -> list[Flow]:
    """The flows of a share that are free, cheapest first.

    A microbatch on stage peers that a later plan has dropped still takes the place of a flow: the dearest free one waits for
    it."""
    free, gone = list(share), 0
    for stage_peers in used:
        flow = next((f for f in free if f.stage_peers == stage_peers), None)
        if flow is not None:
            free.remove(flow)
        else:
            gone += 1
    return free[: max(0, len(free) - gone)]
