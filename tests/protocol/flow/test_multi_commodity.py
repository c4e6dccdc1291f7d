"""Several data peers: plans that keep every rule, bounds that hold, and a cost near that of a second solver's optimum."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import linprog

from gwtf_p2p.protocol.flow.column_generation import Budget, CapacityLeft, Pricer, dive, lower_bound_us, relax
from gwtf_p2p.protocol.flow.local_search import SMALL_MOVES, descend, reroute_each, value
from gwtf_p2p.protocol.flow.master_lp import PathMaster
from gwtf_p2p.protocol.flow.min_cost import FAR, solve
from gwtf_p2p.protocol.flow.multi_commodity import Effort, JointStatus, solve_joint
from gwtf_p2p.protocol.flow.plan_keeper import check_plan, flows_of, plan_of
from gwtf_p2p.protocol.flow.problem import MAX_COST_US, Problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.random import random_plan
from tests.exploring import examples
from tests.protocol.flow.problems import Size, best_by_highs, random_problem

sizes = st.builds(
    Size,
    stages=st.integers(1, 4),
    stage_peers=st.integers(1, 5),
    data_peers=st.integers(1, 3),
    demand=st.integers(1, 5),
    capacity=st.integers(1, 3),
    missing=st.sampled_from([0.0, 0.3, 0.6]),
    dearest=st.sampled_from([0, 3, 1000]),
)


@examples(50)
@given(sizes, st.integers(0, 2**32))
def test_every_plan_keeps_demands_capacities_and_links_and_returns_home(size: Size, seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed), size)
    joint = solve_joint(problem)
    check_plan(problem, plan_of(problem, joint.flows, joint.lower_bound_us))
    assert (joint.flows[:, 0] == joint.flows[:, -1]).all()
    assert joint.lower_bound_us <= joint.cost_us
    assert len(joint.flows) <= joint.most_flows


@pytest.mark.parametrize("seed", range(3))
def test_small_problems_are_within_one_percent_of_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in range(10):
        size = Size(
            stages=int(rng.integers(2, 7)),
            stage_peers=int(rng.integers(3, 8)),
            data_peers=int(rng.integers(2, 5)),
            missing=float(rng.choice([0.0, 0.3])),
        )
        problem = random_problem(rng, size)
        joint, (flows, cost) = solve_joint(problem), best_by_highs(problem)
        what = f"problem {n} of seed {seed}: {size}"
        assert len(joint.flows) == flows, what
        assert joint.cost_us <= cost * 1.01, what
        assert joint.lower_bound_us <= cost, what
        assert joint.most_flows >= flows, what
        if joint.status is JointStatus.OPTIMAL:
            assert joint.cost_us == cost, what


def test_one_data_peer_is_solved_exactly() -> None:
    problem = random_problem(np.random.default_rng(5), Size(stages=5, stage_peers=8, demand=20))
    exact, joint = solve(problem.network(), problem.demand), solve_joint(problem)
    assert (len(joint.flows), joint.cost_us, joint.status) == (exact.units, exact.cost, JointStatus.OPTIMAL)


def test_without_any_effort_the_plan_is_still_whole() -> None:
    """The budget limits how good a plan is, never whether its rules hold."""
    problem = random_problem(np.random.default_rng(8), Size(stages=5, stage_peers=8, data_peers=4))
    poor = solve_joint(problem, Effort(base=0, rounds=0, most=0))
    good = solve_joint(problem)
    check_plan(problem, plan_of(problem, poor.flows, None))
    assert len(poor.flows) == len(good.flows)
    assert poor.cost_us >= good.cost_us >= poor.lower_bound_us


@examples(30)
@given(sizes, st.integers(0, 2**32))
def test_any_prices_give_a_valid_lower_bound(size: Size, seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, size)
    joint = solve_joint(problem)
    prices = tuple(rng.uniform(0, size.dearest + 1, len(stage)) for stage in problem.stage_peers)
    assert lower_bound_us(problem, prices, len(joint.flows)) <= joint.cost_us


@examples(30)
@given(sizes, st.integers(0, 2**32))
def test_local_moves_keep_the_rules_and_never_make_a_plan_worse(size: Size, seed: int) -> None:
    from random import Random

    problem = random_problem(np.random.default_rng(seed), size)
    packed, _ = random_plan(problem, Random(seed))
    flows = flows_of(problem, packed)
    for moves in (SMALL_MOVES, (reroute_each,), None):
        better = descend(problem, flows, moves)
        check_plan(problem, plan_of(problem, better, None))
        assert value(problem, better) <= value(problem, flows)
        flows = better


@pytest.mark.parametrize("dearest", [1 << 20, MAX_COST_US])
def test_costs_of_any_size_are_planned_and_bounded(dearest: int) -> None:
    problem = random_problem(np.random.default_rng(2), Size(stages=6, stage_peers=6, data_peers=3, dearest=dearest))
    joint, (flows, _) = solve_joint(problem), best_by_highs(problem)
    check_plan(problem, plan_of(problem, joint.flows, None))
    assert len(joint.flows) == flows
    assert 0.95 * joint.cost_us <= joint.lower_bound_us <= joint.cost_us


def test_the_relaxation_reaches_the_value_of_a_second_solver() -> None:
    """All paths of a small problem are listed, so HiGHS can solve the same program directly."""
    problem = random_problem(np.random.default_rng(3), Size(stages=3, stage_peers=4, data_peers=3, demand=4, capacity=3))
    pricer = Pricer(problem)
    room = CapacityLeft(problem.capacities[:-1], 100)
    relaxation = relax(pricer, room, (), Budget(10**9))
    assert relaxation.is_optimal
    paths = _all_paths(problem)
    costs = np.array([problem.path_cost_us(p) for p in paths], dtype=float)
    rows = [[float(p[k] == i) for p in paths] for k, bound in enumerate(room.bounds) for i in range(len(bound))]
    bounds = np.concatenate(room.bounds)
    most = linprog(-np.ones(len(paths)), A_ub=rows, b_ub=bounds)
    best = linprog(costs, A_ub=rows, b_ub=bounds, A_eq=[np.ones(len(paths))], b_eq=[-most.fun])
    assert relaxation.units == pytest.approx(-most.fun)
    assert sum(x * problem.path_cost_us(p) for p, x in relaxation.amounts) == pytest.approx(best.fun)


def test_diving_takes_no_more_than_there_is_room_for() -> None:
    problem = random_problem(np.random.default_rng(4), Size(stages=4, stage_peers=6, data_peers=4))
    pricer, room, budget = Pricer(problem), CapacityLeft(problem.capacities[:-1], 5), Budget(10**9)
    paths = dive(pricer, relax(pricer, room, (), budget), room, budget)
    assert len(paths) == 5
    left = room.without(paths)
    assert left.most == 0
    assert all((bound >= 0).all() for bound in left.bounds)


def test_a_known_path_is_not_added_twice() -> None:
    master = PathMaster((np.array([2]), np.array([1, 1])), 5, 100.0)
    assert master.add((0, 1, 0), 7)
    assert not master.add((0, 1, 0), 7)
    assert master.optimise(10**6)
    assert master.solution() == [((0, 1, 0), 1.0)]


@examples(25)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False))
@example(27339279, Random(0))
@example(27339279, Random(1))
def test_names_decide_nothing_but_ties(seed: int, random: object) -> None:
    """Renaming the peers changes their order everywhere, but not how good the plan of a small problem is."""
    problem = random_problem(np.random.default_rng(seed), Size(stages=3, stage_peers=4, data_peers=2, demand=4))
    renamed = _reordered(problem, random)
    one, other = solve_joint(problem), solve_joint(renamed)
    assert len(one.flows) == len(other.flows)
    assert one.cost_us == pytest.approx(other.cost_us, rel=0.01)


def _all_paths(problem: Problem) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [(d,) for d in range(len(problem.data_peers))]
    for stage in problem.stage_peers:
        paths = [(*p, i) for p in paths for i in range(len(stage))]
    return [q for p in paths if problem.path_cost_us(q := (*p, p[0])) < FAR]


def _reordered(problem: Problem, random: object) -> Problem:
    orders = [random.sample(range(len(layer)), len(layer)) for layer in problem.layers[:-1]]  # type: ignore[attr-defined]
    orders.append(orders[0])
    names = [[PeerId(f"p{k}_{n}") for n in range(len(order))] for k, order in enumerate(orders)]
    data = tuple(replace(problem.data_peers[i], peer=names[0][n]) for n, i in enumerate(orders[0]))
    stages = tuple(
        tuple(replace(stage[i], peer=names[k][n]) for n, i in enumerate(orders[k]))
        for k, stage in enumerate(problem.stage_peers, start=1)
    )
    costs = tuple(c[np.ix_(orders[k], orders[k + 1])] for k, c in enumerate(problem.costs_us))
    return Problem("renamed", data, stages, costs)
