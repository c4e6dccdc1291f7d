"""Local moves that make whole flows of several data peers cheaper, until none helps.

A set of flows is an array `flows_FL`: one row per flow, one column per layer 0..S + 1, holding the index of the peer in its
layer; first and last column are the same data peer. Rows are kept in ascending order. Every move keeps all demands and
capacities and never loses a flow:

- `swap_segments`: two flows exchange what lies between two cuts; the best pair and cuts first (the paper's Request Change is
  the case of one stage).
- `redirect`: one flow takes another stage peer of one stage that has spare capacity (the paper's Request Redirect).
- `reroute_each`: all flows of one data peer are planned anew, exactly, in what the others leave; adds flows that fit.

Each move strictly improves (more flows, then less cost), so the descent ends. (An exact assignment of all flows to the
stage peers of one stage was measured too: no better than these three together, and twice as slow.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gwtf_p2p.protocol.flow.min_cost import FAR, IntArray, LayeredNetwork, solve
from gwtf_p2p.protocol.flow.problem import Problem

Move = Callable[[Problem, IntArray], IntArray]

_MAX_PAIRWISE = 512
"""Above this many flows their pairs are not searched: the table of all pairs would take gigabytes."""
_MAX_ROUNDS = 30


def descend(problem: Problem, flows_FL: IntArray, moves: tuple[Move, ...] | None = None) -> IntArray:
    """Repeat the moves (all three by default) in turn until none improves."""
    for _ in range(_MAX_ROUNDS):
        before = value(problem, flows_FL)
        for move in moves or ALL_MOVES:
            flows_FL = move(problem, flows_FL)
        if value(problem, flows_FL) == before:
            break
    return flows_FL


def value(problem: Problem, flows_FL: IntArray) -> tuple[int, int]:
    """(-flows, total cost): the lower, the better."""
    return -len(flows_FL), int(costs_of(problem, flows_FL).sum())


def costs_of(problem: Problem, flows_FL: IntArray) -> IntArray:
    """Cost of each flow in microseconds."""
    total = np.zeros(len(flows_FL), dtype=np.int64)
    for layer, costs in enumerate(problem.costs_us):
        total += costs[flows_FL[:, layer], flows_FL[:, layer + 1]]
    return total


def in_order(flows_FL: IntArray) -> IntArray:
    """Rows in ascending order, so that equal sets of flows are equal arrays."""
    if len(flows_FL) == 0:
        return flows_FL
    ordered: IntArray = flows_FL[np.lexsort(flows_FL.T[::-1])]
    return ordered


def spare_of(problem: Problem, flows_FL: IntArray) -> list[IntArray]:
    """Capacity of each stage peer that the flows leave, per stage."""
    spare = [c.copy() for c in problem.capacities[1:-1]]
    for stage, left in enumerate(spare, start=1):
        np.subtract.at(left, flows_FL[:, stage], 1)
    return spare


def swap_segments(problem: Problem, flows_FL: IntArray) -> IntArray:
    """Exchange segments between pairs of flows, the largest saving first, until no exchange saves."""
    if not 2 <= len(flows_FL) <= _MAX_PAIRWISE:
        return flows_FL
    flows = flows_FL.copy()
    change_KFF = np.stack([cut_change(problem, flows, layer) for layer in range(problem.stages + 1)])
    while True:
        two_best = np.partition(change_KFF, 1, axis=0)[:2]
        total_FF = two_best[0] + two_best[1]
        f, g = (int(i) for i in np.unravel_index(int(total_FF.argmin()), total_FF.shape))
        if total_FF[f, g] >= 0:
            return in_order(flows)
        first, second = sorted(np.argsort(change_KFF[:, f, g], kind="stable")[:2].tolist())
        segment = slice(first + 1, second + 1)
        flows[f, segment], flows[g, segment] = flows[g, segment].copy(), flows[f, segment].copy()
        for layer in range(first, second + 1):
            _update_cut_change(problem, flows, layer, (f, g), change_KFF[layer])


def cut_change(problem: Problem, flows: IntArray, layer: int) -> IntArray:
    """Entry [f, g]: what it costs more when f and g exchange what follows `layer`."""
    costs = problem.costs_us[layer]
    crossing = np.minimum(costs[flows[:, layer][:, None], flows[:, layer + 1][None, :]], FAR)
    own = crossing.diagonal()
    change: IntArray = crossing + crossing.T - own[:, None] - own[None, :]
    return change


def _update_cut_change(problem: Problem, flows: IntArray, layer: int, changed: tuple[int, int], change_FF: IntArray) -> None:
    costs, heads, tails = problem.costs_us[layer], flows[:, layer], flows[:, layer + 1]
    own = costs[heads, tails]
    for f in changed:
        row = np.minimum(costs[heads[f], tails], FAR) + np.minimum(costs[heads, tails[f]], FAR) - own[f] - own
        change_FF[f, :] = change_FF[:, f] = row


def redirect(problem: Problem, flows_FL: IntArray) -> IntArray:
    """Move single flows to stage peers with spare capacity, stage after stage, the largest saving first."""
    flows, spare = flows_FL.copy(), spare_of(problem, flows_FL)
    moved = len(flows) > 0
    while moved:
        moved = False
        for stage in range(1, problem.stages + 1):
            moved = _redirect_in_stage(problem, flows, stage, spare[stage - 1]) or moved
    return in_order(flows)


def _redirect_in_stage(problem: Problem, flows: IntArray, stage: int, spare: IntArray) -> bool:
    """Changes `flows` and `spare` in place; returns whether anything moved."""
    every = np.arange(len(flows))
    into, out_of = problem.costs_us[stage - 1][flows[:, stage - 1]], problem.costs_us[stage][:, flows[:, stage + 1]].T
    detour_FN = np.minimum(into + out_of, FAR)
    own = detour_FN[every, flows[:, stage]]
    moved = False
    while True:
        open_FN = np.where(spare > 0, detour_FN, FAR)
        best = open_FN.argmin(axis=1)
        saving = own - open_FN[every, best]
        flow = int(saving.argmax())
        if saving[flow] <= 0:
            return moved
        spare[flows[flow, stage]] += 1
        spare[best[flow]] -= 1
        flows[flow, stage], own[flow] = best[flow], detour_FN[flow, best[flow]]
        moved = True


def reroute_each(problem: Problem, flows_FL: IntArray) -> IntArray:
    """Data peer after data peer, plan all its flows anew in what the others leave, up to its demand."""
    flows = flows_FL
    for data, peer in enumerate(problem.data_peers):
        mine = flows[:, 0] == data
        others = flows[~mine]
        limit = min(peer.demand, int(min(s.sum() for s in spare_of(problem, others))))
        result = solve(network_for(problem, data, spare_of(problem, others), limit), limit)
        own_cost = int(costs_of(problem, flows[mine]).sum())
        if (-result.units, result.cost) < (-int(mine.sum()), own_cost):
            paths = np.array([(data, *path[1:-1], data) for path in result.paths()], dtype=np.int64)
            flows = np.concatenate([others, paths.reshape(-1, flows.shape[1])])
    return in_order(flows)


def network_for(problem: Problem, data: int, spare: list[IntArray], limit: int) -> LayeredNetwork:
    """The network of one data peer in the spare capacity of the stage peers."""
    ends = np.array([limit], dtype=np.int64)
    costs = problem.costs_us
    return LayeredNetwork((ends, *spare, ends), (costs[0][data : data + 1], *costs[1:-1], costs[-1][:, data : data + 1]))


SMALL_MOVES: tuple[Move, ...] = (swap_segments, redirect)
"""Those that take milliseconds."""
ALL_MOVES: tuple[Move, ...] = (swap_segments, redirect, reroute_each)
