"""`greedy`: every holder takes the cheapest next hop with room. A lower baseline: no look ahead, no agreement.

As a router it answers hop by hop from its view. `greedy_plan` packs a whole problem the same way: data peers in turn, each
flow hop by hop through the cheapest peer with capacity left; a flow that runs into a dead end is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.flow.local_search import in_order
from gwtf_p2p.protocol.flow.min_cost import FAR, IntArray
from gwtf_p2p.protocol.flow.plan_keeper import Plan, plan_of
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.routers.spare import SpareCapacity
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.view.network_view import NetworkView

Choice = Callable[[IntArray], int]
"""Picks one of the candidates by position, given their costs (none of them FAR)."""


@dataclass(frozen=True, slots=True)
class HopConfig(RouterSettings):
    """`in_flight`: own microbatches under way at once, 0 for no limit."""

    in_flight: int = 0

    def __post_init__(self) -> None:
        if self.in_flight < 0:
            raise ValueError(f"in_flight: expected a whole number from 0, got {self.in_flight}")


class GreedyRouter:
    """The router of one peer. Ties go to the lowest id."""

    def __init__(self, config: HopConfig | None = None) -> None:
        self._limit = (config or HopConfig()).in_flight
        self._flying: set[MicrobatchId] = set()
        self._spare = SpareCapacity()

    def observe_view(self, view: NetworkView, now: float) -> None:
        self._spare.observe_view(view)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        self._spare.observe_hop(hop)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._flying.discard(microbatch)
        self._spare.observe_end(microbatch)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """One hop: the cheapest from `after`, with the hop to `rejoin` added when only one stage is to be replaced."""
        view = self._spare.view
        if view is None or request.after not in view.records:
            return NoRoute("own record is not in the view yet")
        if request.is_new and 0 < self._limit <= len(self._flying):
            return NoRoute(f"{len(self._flying)} of {self._limit} in flight")
        peers, roomy = self._spare.able(request.first_stage, request.excluding)
        if not peers:
            return NoRoute(f"no peer of stage {request.first_stage} can be asked")
        chosen = self._choose(view, request, peers)
        self._spare.sent(request.microbatch, (chosen,))
        if request.is_new:
            self._flying.add(request.microbatch)
        return Route((chosen,), f"{self._how()} of {len(peers)}{'' if roomy else ', none known to have room'}")

    def _choose(self, view: NetworkView, request: RouteRequest, peers: tuple[PeerId, ...]) -> PeerId:
        rejoin = request.rejoin if request.first_stage == request.last_stage and request.rejoin in view.records else None

        def cost_us(peer: PeerId) -> int:
            return view.hop_cost_us(request.after, peer) + (view.hop_cost_us(peer, rejoin) if rejoin else 0)

        return min(peers, key=lambda peer: (cost_us(peer), peer))

    def _how(self) -> str:
        return "cheapest hop"


def greedy_plan(problem: Problem) -> tuple[Plan, str]:
    """A whole problem packed hop by hop."""
    return pack(problem, lambda costs: int(costs.argmin()))


def pack(problem: Problem, choose: Choice) -> tuple[Plan, str]:
    """Data peers in turn send one flow each until none finds a way any more."""
    left = [c.copy() for c in problem.capacities[:-1]]
    rows: list[list[int]] = []
    turn = list(range(len(problem.data_peers)))
    while turn:
        for data in tuple(turn):
            row = _pack_one(problem, data, left, choose) if left[0][data] > 0 else None
            if row is None:
                turn.remove(data)
                continue
            rows.append(row)
            for layer, index in enumerate(row[:-1]):
                left[layer][index] -= 1
    flows = np.array(rows, dtype=np.int64).reshape(-1, problem.stages + 2)
    return plan_of(problem, in_order(flows), None), f"{len(rows)} of {problem.demand} flows wanted, packed hop by hop"


def _pack_one(problem: Problem, data: int, left: list[IntArray], choose: Choice) -> list[int] | None:
    row = [data]
    for stage in range(1, problem.stages + 1):
        costs = problem.costs_us[stage - 1][row[-1]]
        if stage == problem.stages:
            costs = np.where(problem.costs_us[-1][:, data] < FAR, costs, FAR)
        able = ((left[stage] > 0) & (costs < FAR)).nonzero()[0]
        if len(able) == 0:
            return None
        row.append(int(able[choose(costs[able])]))
    return [*row, data]
