"""The exact flow: its certificate on any network, and a second solver's answer on many."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.flow.certificate import violations
from gwtf_p2p.protocol.flow.min_cost import NO_ARC, FlowStatus, LayeredNetwork, solve
from tests.exploring import examples
from tests.protocol.flow.problems import Size, best_by_highs, random_problem

PER_SEED = 20


@st.composite
def networks(draw: st.DrawFn) -> LayeredNetwork:
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    seed, missing = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.3, 0.7]))
    dearest, most = draw(st.sampled_from([0, 2, 1000])), draw(st.integers(0, 4))
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, dearest + 1, shape) for shape in pairwise(sizes)]
    for matrix in costs:
        matrix[rng.random(matrix.shape) < missing] = NO_ARC
    return LayeredNetwork.of([rng.integers(0, most + 1, n) for n in sizes], costs)


@examples(100)
@given(networks(), st.integers(0, 12))
def test_every_flow_is_certified_feasible_cheapest_and_largest(network: LayeredNetwork, limit: int) -> None:
    result = solve(network, limit)
    assert violations(network, result, limit) == []
    assert list(result.marginal_costs) == sorted(result.marginal_costs)
    assert sum(result.marginal_costs) == result.cost
    paths = result.paths()
    assert len(paths) == result.units
    assert sum(int(network.costs[k][p[k], p[k + 1]]) for p in paths for k in range(network.last)) == result.cost


@examples(30)
@given(networks(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_order_of_peers_changes_neither_count_nor_cost(network: LayeredNetwork, limit: int, random: object) -> None:
    orders = [np.array(random.sample(range(len(c)), len(c)), dtype=np.int64) for c in network.capacities]  # type: ignore[attr-defined]
    shuffled = LayeredNetwork(
        tuple(c[order] for c, order in zip(network.capacities, orders, strict=True)),
        tuple(c[np.ix_(orders[k], orders[k + 1])] for k, c in enumerate(network.costs)),
    )
    one, other = solve(network, limit), solve(shuffled, limit)
    assert (one.status, one.units, one.marginal_costs) == (other.status, other.units, other.marginal_costs)


@pytest.mark.parametrize("seed", range(5))
def test_a_second_solver_finds_the_same_count_and_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in range(PER_SEED):
        large = n == 0
        size = Size(
            stages=8 if large else int(rng.integers(1, 8)),
            stage_peers=20 if large else int(rng.integers(1, 9)),
            demand=60 if large else 20,
            missing=float(rng.choice([0.0, 0.2, 0.5])),
            dearest=int(rng.choice([3, 100, 100_000])),
        )
        problem = random_problem(rng, size)
        result = solve(problem.network(), problem.demand)
        assert (result.units, result.cost) == best_by_highs(problem), f"problem {n} of seed {seed}: {size}"


def test_status_says_why_the_solver_stopped() -> None:
    network = LayeredNetwork.of([[9], [2, 1], [9]], [[[1, 5]], [[1], [5]]])
    assert solve(network, 2).status is FlowStatus.LIMIT_REACHED
    assert solve(network, 9).status is FlowStatus.CUT_FILLED
    assert solve(LayeredNetwork.of([[9], [0], [9]], [[[1]], [[1]]]), 9).status is FlowStatus.EMPTY
    assert solve(LayeredNetwork.of([[9], [3], [9]], [[[NO_ARC]], [[1]]]), 9).status is FlowStatus.EMPTY
    assert solve(LayeredNetwork.of([[], [3], []], [np.zeros((0, 1)), np.zeros((1, 0))]), 9).status is FlowStatus.EMPTY


def test_an_earlier_flow_is_moved_when_that_makes_room_for_a_later_one() -> None:
    # The first unit's cheapest path 0-0 blocks the second; both fit only when it moves to 0-1.
    costs = [[[0, 0]], [[1, 2], [1, NO_ARC]], [[0], [0]]]
    network = LayeredNetwork.of([[2], [1, 1], [1, 1], [2]], costs)
    result = solve(network, 2)
    assert (result.units, result.cost, result.paths()) == (2, 3, [(0, 0, 1, 0), (0, 1, 0, 0)])


def test_prices_tell_what_one_more_unit_of_capacity_saves() -> None:
    network = LayeredNetwork.of([[2], [1, 9], [2]], [[[1, 10]], [[1], [10]]])
    prices = solve(network, 2).to_sink.prices()
    assert prices[1].tolist() == [18, 0]


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="costs: expected shapes"):
        LayeredNetwork.of([[1], [1, 1], [1]], [[[1]], [[1]]])


def test_the_certificate_refuses_flows_that_are_not_optimal() -> None:
    """Guards the guard: a detour, a lost unit, a wrong sum and an overload must not pass."""
    network = LayeredNetwork.of([[5], [2, 2], [2, 2], [5]], [[[1, 4]], [[1, 3], [6, 2]], [[1], [1]]])
    result = solve(network, 3)
    assert violations(network, result, 3) == []
    assert result.arcs == ({(0, 0): 2, (0, 1): 1}, {(0, 0): 2, (1, 1): 1}, {(0, 0): 2, (1, 0): 1})
    detour = ({(0, 0): 1, (0, 1): 2}, {(0, 0): 1, (1, 1): 2}, {(0, 0): 1, (1, 0): 2})
    assert any("price" in text for text in violations(network, replace(result, arcs=detour, cost=17), 3))
    broken = ({(0, 0): 2, (0, 1): 1}, {(0, 0): 2}, {(0, 0): 2, (1, 0): 1})
    assert any("arrive" in text for text in violations(network, replace(result, arcs=broken, cost=11), 3))
    assert any("claimed" in text for text in violations(network, replace(result, cost=result.cost - 1), 3))
    assert any("another unit fits" in text for text in violations(network, solve(network, 2), 3))
    tight = replace(network, capacities=(np.array([5]), np.array([1, 2]), np.array([2, 2]), np.array([5])))
    assert any("over capacities" in text for text in violations(tight, result, 3))
