"""Release a few flows that are in each other's way and plan them again, near-exactly, in what the others leave.

For each flow, worst first: its ideal path is its data peer's cheapest under given prices of the stage peers. Released with it
are the flows that hold the full stage peers of that path, then those that share stage peers with it. The part is solved as the
whole is, by the relaxation and diving of `flow_columns`, and taken if it is better. (Large neighbourhood search: Shaw 1998.)
The search ends when a pass over all flows brings nothing, when the cost is close enough to the bound, or with the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.flow.column_generation import Budget, CapacityLeft, Pricer, dive, relax
from gwtf_p2p.protocol.flow.local_search import costs_of, in_order, spare_of, value
from gwtf_p2p.protocol.flow.master_lp import FloatArray, Path
from gwtf_p2p.protocol.flow.min_cost import FAR, IntArray

Mask = npt.NDArray[np.bool_]
_RELEASED = 12
_PART_WORK = 10_000_000


@dataclass(frozen=True, slots=True)
class Goal:
    """No more than `flows` flows are possible, and a cost of `cost_us` is cheap enough for them."""

    flows: int
    cost_us: int

    def is_met(self, value_of_flows: tuple[int, int]) -> bool:
        return value_of_flows <= (-self.flows, self.cost_us)


@dataclass(frozen=True, eq=False, slots=True)
class Ideals:
    """Each data peer's cheapest path under `prices` (None: it has none) and that path's priced cost."""

    prices: tuple[FloatArray, ...]
    paths: tuple[Path | None, ...]
    costs: FloatArray

    @staticmethod
    def under(pricer: Pricer, prices: tuple[FloatArray, ...]) -> Ideals:
        found = [pricer.paths(d, prices, float(FAR), 1) for d in range(len(pricer.problem.data_peers))]
        paths = tuple(path[0] if path else None for path in found)
        costs = [pricer.problem.path_cost_us(p) + sum(prices[k][i] for k, i in enumerate(p[1:-1])) if p else 0.0 for p in paths]
        return Ideals(prices, paths, np.array(costs))

    def regret(self, pricer: Pricer, flows_FL: IntArray) -> FloatArray:
        """How much dearer each flow is, priced, than its data peer's ideal."""
        priced = costs_of(pricer.problem, flows_FL).astype(np.float64)
        for stage, prices in enumerate(self.prices, start=1):
            priced += prices[flows_FL[:, stage]]
        regret: FloatArray = priced - self.costs[flows_FL[:, 0]]
        return regret


def release_and_replan(
    pricer: Pricer, flows_FL: IntArray, prices: tuple[FloatArray, ...], goal: Goal, budget: Budget
) -> IntArray:
    """Improve `flows_FL` until the goal is met or nothing helps any more."""
    ideals = Ideals.under(pricer, prices)
    improved = True
    while improved and not budget.is_spent:
        before, tried = value(pricer.problem, flows_FL), set[Path]()
        while not budget.is_spent and not goal.is_met(value(pricer.problem, flows_FL)):
            flow = _worst(ideals.regret(pricer, flows_FL), flows_FL, tried)
            if flow < 0:
                break
            tried.add(tuple(flows_FL[flow].tolist()))
            part = budget.part(_PART_WORK)
            flows_FL = _replan(pricer, flows_FL, _in_the_way(pricer, flows_FL, flow, ideals), goal.flows, part)
            budget.settle(part)
        improved = value(pricer.problem, flows_FL) < before
    return flows_FL


def _worst(regret: FloatArray, flows_FL: IntArray, tried: set[Path]) -> int:
    """Index of the flow with the most regret that has not been tried; ties go to the first. -1 when all have."""
    for flow in np.argsort(-regret, kind="stable").tolist():
        if tuple(flows_FL[flow].tolist()) not in tried:
            return int(flow)
    return -1


def _in_the_way(pricer: Pricer, flows_FL: IntArray, flow: int, ideals: Ideals) -> Mask:
    """The flows to release together with `flow`: a mask."""
    ideal = ideals.paths[int(flows_FL[flow, 0])]
    spare = spare_of(pricer.problem, flows_FL)
    score = np.zeros(len(flows_FL), dtype=np.int64)
    for stage, left in enumerate(spare, start=1):
        if ideal is not None and left[ideal[stage]] <= 0:
            score += 2 * (flows_FL[:, stage] == ideal[stage])
        score += flows_FL[:, stage] == flows_FL[flow, stage]
    score[flow] = np.iinfo(np.int64).max
    regret = ideals.regret(pricer, flows_FL)
    released = np.zeros(len(flows_FL), dtype=np.bool_)
    released[np.lexsort((-regret, -score))[:_RELEASED]] = True
    return released


def _replan(pricer: Pricer, flows_FL: IntArray, released: Mask, most: int, budget: Budget) -> IntArray:
    problem, others = pricer.problem, flows_FL[~released]
    demand = problem.capacities[0].copy()
    np.subtract.at(demand, others[:, 0], 1)
    room = CapacityLeft((demand, *spare_of(problem, others)), most - len(others))
    relaxation = relax(pricer, room, tuple(tuple(row) for row in flows_FL[released].tolist()), budget)
    paths = np.array(dive(pricer, relaxation, room, budget), dtype=np.int64).reshape(-1, flows_FL.shape[1])
    candidate = in_order(np.concatenate([others, paths]))
    return min(flows_FL, candidate, key=lambda flows: value(problem, flows))
