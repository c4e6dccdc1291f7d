"""The bounds: equal to what can be computed by hand, never beaten, and reached where nothing stands in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.bounds.bound import Bound, bound_of
from gwtf_p2p.simulation.lines.links import LinkSpec
from gwtf_p2p.simulation.run import Simulation, simulate
from gwtf_p2p.simulation.scenario.scenario import LinkTable, Scenario, load_scenario
from gwtf_p2p.simulation.swarm.build import Arm, Memory, build
from tests.simulation.stories import story

SCENARIOS = Path(__file__).parent.parent.parent / "experiments" / "scenarios"
SIZE = 100_000


def bound(scenario: Scenario, memory: Memory = Memory.LIMITED) -> Bound:
    return bound_of(build(scenario, Arm("swarm", default_config("swarm"), memory=memory), 0, lambda *_: None))


def with_link(scenario: Scenario, latency_s: float, bandwidth: float, line: float | None = None) -> Scenario:
    table = LinkTable(("any",), {("any", "any"): LinkSpec(latency_s, bandwidth)})
    return replace(scenario, links=replace(scenario.links, table=table, line_bytes_per_s=(line,) if line else ()))


def test_compute_limits(tmp_path: Path) -> None:
    """Two stage peers of 0.3 s per microbatch in each of three stages."""
    assert bound(story(tmp_path, forward_s=0.1, capacity=100)).microbatches_per_second == pytest.approx(2 / 0.3)


def test_slots_limit(tmp_path: Path) -> None:
    """One stage of one slot, held from the forward until the backward is done: two transfers and a loss between."""
    one_slot = story(tmp_path, stages=1, stage_peers=1, forward_s=0.1, capacity=1, microbatches=100)
    scenario = with_link(one_slot, latency_s=0.5, bandwidth=SIZE / 0.25)
    loss_s = 0.006 - 0.0002 - 0.0004
    assert bound(scenario).microbatches_per_second == pytest.approx(1 / (0.1 + 0.75 + loss_s + 0.75 + 0.2))
    assert bound(scenario, Memory.UNLIMITED).microbatches_per_second == pytest.approx(1 / 0.3)


def test_lines_limit(tmp_path: Path) -> None:
    """A stage peer's line carries an activation and a gradient each way: at 200 kB/s and 100 kB each, one microbatch per
    second."""
    scenario = with_link(story(tmp_path, stages=1, stage_peers=1, capacity=100), 0.001, 1e9, line=2.0 * SIZE)
    assert bound(scenario).microbatches_per_second == pytest.approx(1.0)


def test_links_limit(tmp_path: Path) -> None:
    """Activations go one way and gradients the other, each on its own link."""
    scenario = with_link(story(tmp_path, stages=2, stage_peers=1, capacity=100), 0.001, 2.0 * SIZE)
    assert bound(scenario).microbatches_per_second == pytest.approx(2.0)


def test_one_microbatch_takes_exactly_its_path(tmp_path: Path) -> None:
    """Nothing queues: the bound of the iteration is what happens."""
    scenario = story(tmp_path, microbatches=1, stage_peers=1, forward_s=0.1)
    outcome = simulate(scenario, Arm("swarm", default_config("swarm")), 0)
    assert outcome.measured_seconds[0] == pytest.approx(outcome.bound_iteration_seconds, rel=2e-3)


@pytest.mark.parametrize("memory", list(Memory))
def test_a_long_iteration_reaches_the_steady_rate(tmp_path: Path, memory: Memory) -> None:
    """One stage of two equal stage peers, compute-bound, 100 microbatches: nearly the bound, and never over it."""
    scenario = story(tmp_path, microbatches=100, stages=1, iterations=2)
    outcome = simulate(scenario, Arm("swarm", default_config("swarm"), memory=memory), 0)
    ratio = outcome.microbatches_per_second / outcome.bound_microbatches_per_second
    assert 0.9 < ratio <= 1.0 and outcome.mean_iteration_s >= outcome.bound_iteration_seconds


@pytest.mark.parametrize("memory", list(Memory))
@pytest.mark.parametrize("name", ["homogeneous", "heterogeneous_compute", "ten_regions_cloud", "ten_regions_home"])
def test_no_run_beats_a_bound(name: str, memory: Memory) -> None:
    scenario = replace(load_scenario(SCENARIOS / f"{name}_churn_0.toml"), iterations=2, warmup_iterations=1)
    for router in ("swarm", "gwtf"):
        outcome = simulate(scenario, Arm(router, default_config(router), memory=memory), 0)
        assert min(outcome.iteration_seconds) >= outcome.bound_iteration_seconds
        assert outcome.microbatches_per_second <= outcome.bound_microbatches_per_second


def test_no_run_with_thin_data_peers_beats_its_bound() -> None:
    scenario = replace(load_scenario(SCENARIOS / "ten_regions_home_churn_0.toml"), iterations=2, warmup_iterations=1)
    for router in ("swarm", "gwtf"):
        thin = simulate(scenario, Arm(router, default_config(router), thin=True), 0)
        assert min(thin.iteration_seconds) >= thin.bound_iteration_seconds
        assert thin.microbatches_per_second <= thin.bound_microbatches_per_second


def test_no_run_with_elastic_shares_beats_its_bound_and_the_slow_line_has_less() -> None:
    scenario = replace(load_scenario(SCENARIOS / "acceptance_churn_0.toml"), iterations=2, warmup_iterations=1)
    for router in ("swarm", "gwtf"):
        simulation = Simulation(scenario, Arm(router, default_config(router), elastic=True), 4)
        outcome = simulation.run()
        assert simulation.swarm.shares == {"data_0": 4, "data_1": 12}  # 50 and 1000 Mbit/s
        assert outcome.microbatches_lost == outcome.double_counted == 0
        assert min(outcome.iteration_seconds) >= outcome.bound_iteration_seconds
        assert outcome.microbatches_per_second <= outcome.bound_microbatches_per_second


def test_with_delayed_steps_iterations_overlap_and_none_beats_what_its_resources_take() -> None:
    """Averages are on the same lines as everything else: bytes are the same as without a delay."""
    scenario = replace(load_scenario(SCENARIOS / "acceptance_churn_0.toml"), iterations=4, warmup_iterations=1)
    for router in ("swarm", "gwtf"):
        at_once, delayed = (Simulation(scenario, Arm(router, default_config(router), delayed=d), 0) for d in (False, True))
        before, outcome = at_once.run(), delayed.run()
        assert outcome.microbatches_lost == outcome.double_counted == 0
        assert outcome.mean_iteration_s < 0.9 * before.mean_iteration_s
        assert outcome.bound_iteration_seconds < outcome.mean_iteration_s
        assert delayed.clairvoyant_s() == (None,) * 3
        averaged = [simulation.world.rounds.bytes_sent for simulation in (at_once, delayed)]
        assert averaged[0] == averaged[1] > 0


@pytest.mark.parametrize("name", ["acceptance_churn_0.toml", "acceptance_homogeneous.toml"])
def test_the_bound_of_a_swarm_too_large_for_a_program_is_looser_and_says_so(name: str) -> None:
    swarm = build(load_scenario(SCENARIOS / name), Arm("gwtf", default_config("gwtf")), 0, lambda *_: None)
    exact, loose = bound_of(swarm), bound_of(swarm, most_hops=0)
    assert (exact.by_stages, loose.by_stages) == (False, True)
    assert exact.microbatches_per_second <= loose.microbatches_per_second * (1 + 1e-6) < 4 * exact.microbatches_per_second
    assert loose.iteration_s <= exact.iteration_s * (1 + 1e-6) < 4 * loose.iteration_s


def test_more_resources_never_lower_a_bound(tmp_path: Path) -> None:
    few, many = bound(story(tmp_path, capacity=2)), bound(story(tmp_path, capacity=3, stage_peers=3))
    assert many.microbatches_per_second >= few.microbatches_per_second and many.iteration_s <= few.iteration_s + many.closing_s
