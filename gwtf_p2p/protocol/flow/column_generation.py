"""Several data peers by linear programming: column generation, rounding by diving, and a bound that holds for any plan.

`relax` solves the relaxation over all paths: `flow_master` prices the peers, a shortest path per data peer under those prices
finds the path that is missing, until none is. The relaxation of this problem is integral more often than not; `dive` turns
the rest into whole flows by fixing what is whole, then the largest fraction, and solving what is left again.

`lower_bound_us` is Lagrange's: for any prices >= 0 of the stage peers, `units` flows cost at least the sum of their data peers'
cheapest priced paths less the prices times the capacities. Prices are rounded to 1/256 microsecond first and the rest is exact
integer arithmetic, so the bound holds whatever floating point did before.

Effort is bounded by counting work (elements touched), never by a clock: equal problems give equal plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gwtf_p2p.protocol.flow.master_lp import FloatArray, Path, PathMaster, Prices
from gwtf_p2p.protocol.flow.min_cost import FAR, NO_ARC, IntArray
from gwtf_p2p.protocol.flow.problem import Problem

_WHOLE = 1e-5
_MOSTLY = 0.7
_PATHS_PER_ROUND = 4
_CALL_WORK = 100_000
"""What a search costs besides the arcs it reads."""
_PRICE_SCALE = 256


@dataclass(slots=True)
class Budget:
    """What is left of the work, in array elements touched (about 2.5 ns each on one core of 2024). It only falls."""

    work: int

    @property
    def is_spent(self) -> bool:
        return self.work <= 0

    def part(self, most: int) -> Budget:
        """A budget of at most `most` for one piece of work; give back the rest with `settle`."""
        granted = max(0, min(self.work, most))
        self.work -= granted
        return Budget(granted)

    def settle(self, part: Budget) -> None:
        """Take back what `part` did not use (or overdrew)."""
        self.work += part.work


@dataclass(frozen=True, eq=False, slots=True)
class CapacityLeft:
    """What flows may use: `bounds[0]` demands, `bounds[k]` capacities of stage k, and `most` flows in all."""

    bounds: tuple[IntArray, ...]
    most: int

    def fits(self, path: Path) -> bool:
        return self.most > 0 and all(self.bounds[k][i] > 0 for k, i in enumerate(path[:-1]))

    def without(self, paths: list[Path]) -> CapacityLeft:
        """What is left when these are in use."""
        bounds = tuple(b.copy() for b in self.bounds)
        for path in paths:
            for k, i in enumerate(path[:-1]):
                bounds[k][i] -= 1
        return CapacityLeft(bounds, self.most - len(paths))


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Paths with amounts that may be fractions. `is_optimal` is False when the budget ended before the optimum."""

    amounts: tuple[tuple[Path, float], ...]
    pool: tuple[Path, ...]
    prices: Prices
    is_optimal: bool

    @property
    def units(self) -> float:
        """Number of flows, a fraction maybe."""
        return sum(amount for _, amount in self.amounts)


class Pricer:
    """Cheapest paths of one data peer at a time under given prices of the stage peers."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.arcs = sum(costs.size for costs in problem.costs_us)
        self._costs: list[FloatArray] = [costs.astype(np.float64) for costs in problem.costs_us]

    def paths(self, data: int, prices: tuple[FloatArray, ...], below: float, most: int) -> list[Path]:
        """Up to `most` paths of data peer `data` with a priced cost under `below`: the cheapest through each of the last
        stage's stage peers, cheapest first, ties to the lowest index."""
        label = self._costs[0][data] + prices[0]
        came_from: list[IntArray] = []
        for stage in range(1, self.problem.stages):
            through = self._costs[stage] + label[:, None]
            best = through.argmin(axis=0)
            came_from.append(best)
            label = through[best, np.arange(len(best))] + prices[stage]
        label = label + self._costs[-1][:, data]
        ends = np.argsort(label, kind="stable")[:most]
        return [self._path(data, int(end), came_from) for end in ends if label[end] < min(below, FAR)]

    @staticmethod
    def _path(data: int, end: int, came_from: list[IntArray]) -> Path:
        stage_peers = [end]
        for best in reversed(came_from):
            stage_peers.append(int(best[stage_peers[-1]]))
        return (data, *reversed(stage_peers), data)


def relax(pricer: Pricer, room: CapacityLeft, pool: tuple[Path, ...], budget: Budget) -> Relaxation:
    """The relaxation within `room`, starting from the paths in `pool`."""
    problem, bounds = pricer.problem, room.bounds
    reward = flow_reward(problem, room.most)
    master = PathMaster(bounds, room.most, reward)
    for path in pool:
        if room.fits(path):
            master.add(path, problem.path_cost_us(path))
    wanted = [d for d in range(len(problem.data_peers)) if bounds[0][d] > 0]
    closed = tuple(np.where(b > 0, 0.0, float(NO_ARC)) for b in bounds[1:])
    tolerance = max(1e-3, reward * 1e-12)
    is_optimal = False
    while not is_optimal and not budget.is_spent:
        before = master.work
        finished = master.optimise(before + budget.work)
        budget.work -= master.work - before
        if not finished:
            break
        prices, is_optimal = master.prices(), True
        priced = tuple(p + c for p, c in zip(prices.stage_peer, closed, strict=True))
        for data in wanted:
            budget.work -= pricer.arcs + _CALL_WORK
            for path in pricer.paths(data, priced, reward - prices.flow - prices.data[data] - tolerance, _PATHS_PER_ROUND):
                is_optimal = not master.add(path, problem.path_cost_us(path)) and is_optimal
    return Relaxation(tuple(master.solution()), tuple(master.paths), master.prices(), is_optimal)


def flow_reward(problem: Problem, units: int) -> float:
    """More than any `units` flows can cost together, so that one flow more is worth any re-routing."""
    dearest = sum(int(np.where(costs < FAR, costs, 0).max(initial=0)) for costs in problem.costs_us)
    return float((units + 1) * (dearest + 1))


def dive(pricer: Pricer, relaxation: Relaxation, room: CapacityLeft, budget: Budget) -> list[Path]:
    """Whole flows near a relaxation, within `room`; possibly fewer flows than the relaxation has. When the budget ends, what
    fits is taken in the order of the fractions."""
    flows: list[Path] = []
    while True:
        fixed = _fix(relaxation, room, 0.0 if budget.is_spent else _MOSTLY)
        room = room.without(fixed)
        flows.extend(fixed)
        fractions = any(_split(amount)[1] > 0 for _, amount in relaxation.amounts)
        if not fixed or not fractions or budget.is_spent:
            return flows
        relaxation = relax(pricer, room, relaxation.pool, budget)


def _split(amount: float) -> tuple[int, float]:
    """Whole part and fraction, rounding dust removed."""
    whole = int(np.floor(amount + _WHOLE))
    rest = amount - whole
    return whole, rest if rest > _WHOLE else 0.0


def _fix(relaxation: Relaxation, room: CapacityLeft, least: float) -> list[Path]:
    """The whole parts, then the fractions from `least` up that fit; at least one path while there is any."""
    parts = [(path, *_split(amount)) for path, amount in relaxation.amounts]
    offers = [path for path, whole, _ in parts for _ in range(whole)]
    by_fraction = sorted((-fraction, path) for path, _, fraction in parts if fraction > 0)
    if not offers and by_fraction:
        offers.append(by_fraction.pop(0)[1])
    offers.extend(path for fraction, path in by_fraction if -fraction >= least)
    fixed: list[Path] = []
    for path in offers:
        if room.fits(path):
            fixed.append(path)
            room = room.without([path])
    return fixed


def lower_bound_us(problem: Problem, prices: tuple[FloatArray, ...], units: int) -> int:
    """A cost that no plan with `units` flows can beat; NO_ARC when the cheapest paths alone show that none exists."""
    highest = flow_reward(problem, units) * 2
    scale = _PRICE_SCALE if highest * (problem.stages + 1) < FAR / (2 * _PRICE_SCALE) else 1
    # A path's prices stay under half of FAR, its costs under the other half: what exists is never taken for unreachable.
    most = min(highest * scale, FAR / 2 / (problem.stages + 1))
    whole = [np.rint(np.minimum(p * scale, most)).astype(np.int64) for p in prices]
    costs_us = [np.where(costs < FAR, costs * scale, NO_ARC) for costs in problem.costs_us]
    cheapest: list[tuple[int, int]] = []
    for data, peer in enumerate(problem.data_peers):
        label = costs_us[0][data] + whole[0]
        for stage in range(1, problem.stages):
            label = (costs_us[stage] + np.minimum(label, NO_ARC)[:, None]).min(axis=0, initial=NO_ARC) + whole[stage]
        label = np.minimum(label, NO_ARC) + costs_us[-1][:, data]
        cheapest.append((int(label.min(initial=NO_ARC)), peer.demand))
    total, left = 0, units
    for cost, demand in sorted(cheapest):
        take = min(demand, left)
        if take and cost >= FAR:
            return NO_ARC
        total, left = total + take * cost, left - take
    if left:
        return NO_ARC
    for price, capacity in zip(whole, problem.capacities[1:-1], strict=True):
        total -= sum(int(p) * int(c) for p, c in zip(price, capacity, strict=True) if p)
    return max(0, -(-total // scale))
