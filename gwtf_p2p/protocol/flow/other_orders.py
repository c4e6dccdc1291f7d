"""The same problem with its peers in another order: local search breaks ties by order, and ends elsewhere.

Small problems are affected most, and can best afford to be solved several times: whether a plan was 2 % dearer than the best
one depended on nothing but the peers' names (a random problem of 3 stages of 4 stage peers with two data peers).
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from gwtf_p2p.protocol.flow.min_cost import IntArray
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import PeerId

Orders = tuple[tuple[int, ...], ...]
"""For each layer 0..S + 1, which peer of the problem stands at each place."""


def other_orders(problem: Problem, count: int) -> list[Orders]:
    """`count` orders of the peers within their layers, the same for equal problems."""
    found: list[Orders] = []
    for number in range(count):
        random = Random(number)
        layers = [tuple(random.sample(range(len(layer)), len(layer))) for layer in problem.layers[:-1]]
        found.append((*layers, layers[0]))
    return found


def reordered(problem: Problem, orders: Orders) -> Problem:
    """The problem with its peers in these orders, under names that sort like it."""
    names = [[PeerId(f"{place:08}") for place in range(len(order))] for order in orders]
    return Problem(
        problem.name,
        tuple(replace(problem.data_peers[i], peer=names[0][n]) for n, i in enumerate(orders[0])),
        tuple(
            tuple(replace(stage[i], peer=names[k][n]) for n, i in enumerate(orders[k]))
            for k, stage in enumerate(problem.stage_peers, start=1)
        ),
        tuple(costs[np.ix_(orders[k], orders[k + 1])] for k, costs in enumerate(problem.costs_us)),
    )


def in_first_order(flows: IntArray, orders: Orders) -> IntArray:
    """Flows of a reordered problem, one row of places per flow, as flows of the problem itself."""
    columns = [np.asarray(order, dtype=np.int64)[flows[:, k]] for k, order in enumerate(orders)]
    return np.stack(columns, axis=1).astype(np.int64).reshape(flows.shape)
