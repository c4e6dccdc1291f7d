"""Checks that a flow is what `flow.solve` promises: feasible, the cheapest of its value, and the largest.

Independent of the solver's own bookkeeping: loads are counted from the arcs, reduced costs are taken over all arcs, and the
cut is found by a search of the residual graph (max-flow min-cut, Ford and Fulkerson 1956). See `flow` for the conditions.
"""

from __future__ import annotations

import numpy as np

from gwtf_p2p.protocol.flow.min_cost import FAR, FlowResult, IntArray, LayeredNetwork


def violations(network: LayeredNetwork, result: FlowResult, limit: int) -> list[str]:
    """What is wrong with `result`; empty when it is an optimal flow of at most `limit` units."""
    return [*_infeasible(network, result, limit), *_not_cheapest(network, result), *_not_largest(network, result, limit)]


def loads_of(network: LayeredNetwork, result: FlowResult) -> list[IntArray]:
    """Units that leave (last layer: arrive at) each point, counted from the arcs."""
    loads = [np.zeros(len(c), dtype=np.int64) for c in network.capacities]
    for layer, arcs in enumerate(result.arcs):
        for (i, j), units in arcs.items():
            loads[layer][i] += units
            if layer == network.last - 1:
                loads[-1][j] += units
    return loads


def _infeasible(network: LayeredNetwork, result: FlowResult, limit: int) -> list[str]:
    wrong: list[str] = []
    loads, cost = loads_of(network, result), 0
    for layer, arcs in enumerate(result.arcs):
        arrived = np.zeros(len(network.capacities[layer + 1]), dtype=np.int64)
        for (i, j), units in arcs.items():
            arrived[j] += units
            cost += units * int(network.costs[layer][i, j])
            if units <= 0 or network.costs[layer][i, j] >= FAR:
                wrong.append(f"arc {i}-{j} of layer {layer} carries {units} at cost {network.costs[layer][i, j]}")
        if (arrived != loads[layer + 1]).any():
            wrong.append(f"layer {layer + 1}: {arrived.tolist()} arrive, {loads[layer + 1].tolist()} leave")
    for layer, (load, capacity) in enumerate(zip(loads, network.capacities, strict=True)):
        if (load > capacity).any():
            wrong.append(f"layer {layer}: loads {load.tolist()} over capacities {capacity.tolist()}")
    if int(loads[0].sum()) != result.units or result.units > limit:
        wrong.append(f"{loads[0].sum()} units leave, {result.units} are claimed, limit {limit}")
    if cost != result.cost:
        wrong.append(f"the arcs cost {cost}, claimed {result.cost}")
    return wrong


def _not_cheapest(network: LayeredNetwork, result: FlowResult) -> list[str]:
    wrong: list[str] = []
    loads = loads_of(network, result)
    entry, leave = result.to_sink.entry, result.to_sink.exit
    for layer, costs in enumerate(network.costs):
        reduced = costs + entry[layer + 1][None, :] - leave[layer][:, None]
        if (reduced[costs < FAR] < 0).any():
            wrong.append(f"layer {layer}: an arc has a negative reduced cost")
        if any(reduced[arc] != 0 for arc in result.arcs[layer]):
            wrong.append(f"layer {layer}: an arc with flow has a reduced cost that is not 0")
    for layer, (load, capacity) in enumerate(zip(loads, network.capacities, strict=True)):
        through = leave[layer] - entry[layer]
        if (through[load < capacity] < 0).any() or (through[load > 0] > 0).any():
            wrong.append(f"layer {layer}: a point's price contradicts its load")
    used, starts = loads[0] > 0, entry[0]
    if used.any() and starts[used].max() > starts.min():
        wrong.append("a cheaper source was left for a dearer one")
    if (leave[-1] != 0).any():
        wrong.append("the sink's potential is not 0")
    return wrong


def _not_largest(network: LayeredNetwork, result: FlowResult, limit: int) -> list[str]:
    if result.units == limit:
        return []
    loads = loads_of(network, result)
    entry = [np.zeros(len(c), dtype=np.bool_) for c in network.capacities]
    leave = [np.zeros(len(c), dtype=np.bool_) for c in network.capacities]
    entry[0][:] = True
    reached = -1
    while reached != (reached := sum(int(side.sum()) for side in (*entry, *leave))):
        for layer in range(network.last + 1):
            leave[layer] |= entry[layer] & (loads[layer] < network.capacities[layer])
            entry[layer] |= leave[layer] & (loads[layer] > 0)
            if layer < network.last:
                entry[layer + 1] |= ((network.costs[layer] < FAR) & leave[layer][:, None]).any(axis=0)
                for i, j in result.arcs[layer]:
                    leave[layer][i] |= entry[layer + 1][j]
    return ["another unit fits: the sink is reached in the residual graph"] if leave[-1].any() else []
