"""Flows for all data peers at once: each leaves and returns to its own data peer (integral multi-commodity flow).

Problem. As in `flow`, but a unit that leaves data peer d must return to d. The largest number of flows first, then the least
total cost. One data peer: min-cost flow, exact. Several: NP-hard in general (Even, Itai, Shamir 1976); here, in this order,

1. `flow.solve` with all data peers as one source and one sink: a lower bound, exact if its paths all happen to return home.
2. Bring them home: pairs of flows exchange their tails at the cut where that costs least, until everyone is home.
3. `flow_descent`: local moves, each exact in its neighbourhood.
4. `flow_columns`: the linear relaxation by column generation, rounded by diving, then the same descent; the better of 3 and 4
   goes on. On problems of the size of a run it is the optimum or within a fraction of a percent of it.
5. `flow_release`: while there is a gap to the bound, small groups of flows are released and planned again.
6. `other_orders`: a small problem with a gap is solved anew with its peers in other orders, and the best plan is taken.

The lower bound is the better of 1 and Lagrange's bound under the prices of 1 and 4. Same problem, same flows: there is no
clock and no random choice, and the effort is bounded by counted work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from gwtf_p2p.protocol.flow.column_generation import Budget, CapacityLeft, Pricer, dive, lower_bound_us, relax
from gwtf_p2p.protocol.flow.large_neighbourhood import Goal, release_and_replan
from gwtf_p2p.protocol.flow.local_search import ALL_MOVES, SMALL_MOVES, costs_of, cut_change, descend, in_order, value
from gwtf_p2p.protocol.flow.master_lp import FloatArray
from gwtf_p2p.protocol.flow.min_cost import FAR, NO_ARC, FlowResult, IntArray, LayeredNetwork, solve
from gwtf_p2p.protocol.flow.other_orders import in_first_order, other_orders, reordered
from gwtf_p2p.protocol.flow.problem import Problem

_MAX_PAIRWISE = 512
RESTARTS, MOST_FLOWS_OF_A_RESTART, LEAST_GAP_OF_A_RESTART = 3, 64, 0.005
"""How often a problem with at most so many flows is solved anew when its plan may be so much too dear."""


class JointStatus(Enum):
    """What is known about the flows found."""

    OPTIMAL = "optimal"
    BOUNDED = "within the gap to the lower bound"
    EMPTY = "no path with spare capacity exists"


@dataclass(frozen=True, slots=True)
class Effort:
    """Most work that `solve_joint` does beyond the local moves, see `Budget`: `base`, and `rounds` searches of all links per
    data peer, together at most `most`. Plans within `gap` of the lower bound are good enough; up to `near` times the gap
    the work is in proportion, since the relaxation of a problem with many equal peers converges slowly and gains little."""

    base: int = 400_000_000
    rounds: int = 20
    most: int = 4_000_000_000
    gap: float = 0.0002
    near: float = 0.005

    def budget(self, arcs: int, data_peers: int, gap: float) -> Budget:
        work = min(self.most, self.base + self.rounds * arcs * data_peers)
        return Budget(max(min(self.base // 4, work), int(work * min(1.0, gap / self.near))))


THOROUGH = Effort(base=4_000_000_000, rounds=100, most=40_000_000_000, gap=0.0, near=1e-9)
"""For `optimal`: a minute or two at worst on large problems; on small ones no more than the default."""


@dataclass(frozen=True, eq=False, slots=True)
class JointFlows:
    """`flows` has one row per flow, as in `flow_descent`. `lower_bound_us` holds for every plan with as many flows, and no plan
    has more than `most_flows`. `prices` are the stage peers' dual prices per stage."""

    status: JointStatus
    flows: IntArray
    cost_us: int
    lower_bound_us: int
    most_flows: int
    prices: tuple[FloatArray, ...]


def solve_joint(problem: Problem, effort: Effort | None = None) -> JointFlows:
    """Plan all data peers' flows together."""
    together = solve(problem.network(), problem.demand)
    prices = tuple(p.astype(np.float64) for p in together.to_sink.prices()[1:-1])
    if together.units == 0:
        empty = np.zeros((0, problem.stages + 2), dtype=np.int64)
        return JointFlows(JointStatus.EMPTY, empty, 0, 0, 0, prices)
    flows = bring_home(problem, together)
    if value(problem, flows) == (-together.units, together.cost):
        return JointFlows(JointStatus.OPTIMAL, flows, together.cost, together.cost, together.units, prices)
    best = _improve(problem, together, descend(problem, flows, SMALL_MOVES), effort or Effort())
    return _restarted(problem, best, effort or Effort())


def _restarted(problem: Problem, best: JointFlows, effort: Effort) -> JointFlows:
    """Step 6. The bound and the prices are those of the first order, and the best bound."""
    if len(best.flows) > MOST_FLOWS_OF_A_RESTART or best.cost_us <= best.lower_bound_us * (1 + LEAST_GAP_OF_A_RESTART):
        return best
    bound = best.lower_bound_us
    for orders in other_orders(problem, RESTARTS):
        other = reordered(problem, orders)
        together = solve(other.network(), other.demand)
        found = _improve(other, together, descend(other, bring_home(other, together), SMALL_MOVES), effort)
        if len(found.flows) == len(best.flows):
            bound = max(bound, found.lower_bound_us)
        if value(other, found.flows) < value(problem, best.flows):
            flows = in_order(in_first_order(found.flows, orders))
            best = replace(best, flows=flows, cost_us=found.cost_us, lower_bound_us=min(bound, found.cost_us))
    bound = min(bound, best.cost_us)
    is_optimal = (len(best.flows), best.cost_us) == (best.most_flows, bound)
    return replace(best, lower_bound_us=bound, status=JointStatus.OPTIMAL if is_optimal else best.status)


def _improve(problem: Problem, together: FlowResult, flows: IntArray, effort: Effort) -> JointFlows:
    """Steps 4 and 5 of the module docstring, and the bound."""
    pricer = Pricer(problem)
    prices = [tuple(p.astype(np.float64) for p in together.to_sink.prices()[1:-1])]
    bounds = _Bounds(problem, together, prices)
    units, cost = value(problem, flows)
    gap = cost / max(1, bounds.at(-units)) - 1 if -units == together.units else 1.0
    budget = effort.budget(pricer.arcs, len(problem.data_peers), gap)
    pool = [tuple(row) for row in flows.tolist()]
    for data, peer in enumerate(problem.data_peers):
        pool.extend(pricer.paths(data, prices[0], float(FAR), min(max(4, peer.demand), 32)))
    room = CapacityLeft(problem.capacities[:-1], together.units)
    relaxation = relax(pricer, room, tuple(pool), budget)
    if relaxation.is_optimal and (most := int(np.floor(relaxation.units + 1e-4))) < room.most:
        room = CapacityLeft(room.bounds, most)
        relaxation = relax(pricer, room, relaxation.pool, budget)
    prices.append(relaxation.prices.stage_peer)
    rounded = np.array(dive(pricer, relaxation, room, budget), dtype=np.int64).reshape(-1, problem.stages + 2)
    rounded = descend(problem, in_order(rounded), SMALL_MOVES if len(rounded) == room.most else ALL_MOVES)
    flows = min(flows, rounded, key=lambda candidate: value(problem, candidate))
    goal = Goal(room.most, int(bounds.at(room.most) * (1 + effort.gap)))
    if not goal.is_met(value(problem, flows)):
        flows = descend(problem, flows)
    if not goal.is_met(value(problem, flows)):
        flows = release_and_replan(pricer, flows, relaxation.prices.stage_peer, goal, budget)
    units, cost = len(flows), int(costs_of(problem, flows).sum())
    bound = min(bounds.at(units), cost)
    status = JointStatus.OPTIMAL if (units, cost) == (room.most, bound) else JointStatus.BOUNDED
    best = max(prices, key=lambda candidate: lower_bound_us(problem, candidate, units) % NO_ARC)
    return JointFlows(status, flows, cost, bound, room.most, best)


@dataclass(frozen=True, eq=False, slots=True)
class _Bounds:
    problem: Problem
    together: FlowResult
    prices: list[tuple[FloatArray, ...]]

    def at(self, units: int) -> int:
        """The best lower bound for plans with that many flows."""
        lagrange = [lower_bound_us(self.problem, prices, units) for prices in self.prices]
        return max([sum(self.together.marginal_costs[:units]), *(bound for bound in lagrange if bound < FAR)])


def bring_home(problem: Problem, together: FlowResult) -> IntArray:
    """Own-return flows from the flow of all data peers together; those that cannot get home are dropped."""
    paths = _balanced(problem, together).paths()
    flows = np.array(paths, dtype=np.int64).reshape(-1, problem.stages + 2)
    if len(flows) <= _MAX_PAIRWISE:
        flows = _exchange_tails(problem, flows)
    return in_order(flows[flows[:, 0] == flows[:, -1]])


def _balanced(problem: Problem, together: FlowResult) -> FlowResult:
    """A flow of all data peers together in which as many units return to each data peer as leave it, if one is as large."""
    leaving, returning = (np.zeros(len(problem.data_peers), dtype=np.int64) for _ in range(2))
    for (data, _), units in together.arcs[0].items():
        leaving[data] += units
    for (_, data), units in together.arcs[-1].items():
        returning[data] += units
    if (leaving == returning).all():
        return together
    stages = problem.capacities[1:-1]
    candidates = [solve(LayeredNetwork((n, *stages, n), problem.costs_us), together.units) for n in (leaving, returning)]
    return min(candidates, key=lambda result: (-result.units, result.cost))


def _exchange_tails(problem: Problem, flows: IntArray) -> IntArray:
    """Exchange tails between flows that are not home, each time the exchange that costs least per flow brought home."""
    flows = flows.copy()
    while True:
        astray = (flows[:, 0] != flows[:, -1]).nonzero()[0]
        if len(astray) < 2:
            return flows
        lost = flows[astray]
        change_KFF = np.stack([cut_change(problem, lost, layer) for layer in range(problem.stages + 1)])
        least_FF = change_KFF.min(axis=0)
        helps_FF = lost[:, 0][:, None] == lost[:, -1][None, :]
        score_FF = np.where(helps_FF & helps_FF.T, least_FF, np.where(helps_FF, 2 * least_FF, 4 * FAR))
        f, g = (int(i) for i in np.unravel_index(int(score_FF.argmin()), score_FF.shape))
        if least_FF[f, g] >= FAR // 2 or not helps_FF[f, g]:
            return flows
        cut = int(change_KFF[:, f, g].argmin()) + 1
        one, other = astray[f], astray[g]
        flows[one, cut:], flows[other, cut:] = flows[other, cut:].copy(), flows[one, cut:].copy()
