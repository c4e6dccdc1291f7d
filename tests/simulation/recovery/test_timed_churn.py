"""Churn by the clock: the same diary whatever an iteration takes, regions that go dark, peers that are slow and alive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.factory import default_config
from gwtf_p2p.simulation.bounds.bound import bound_of, clairvoyant_s
from gwtf_p2p.simulation.run import Simulation
from gwtf_p2p.simulation.scenario.draw import stream
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec, Scenario, TimedChurnSpec, load_scenario
from gwtf_p2p.simulation.swarm.build import Arm, Memory
from tests.simulation.stories import TEXT, USUAL, simulation, story

SCENARIOS = Path(__file__).parents[3] / "experiments" / "scenarios"


def by_time(folder: Path, spec: TimedChurnSpec, **changes: object) -> Scenario:
    return replace(story(folder, **{"iterations": 12, "stage_peers": 3, **changes}), timed_churn=spec)


def faults_of(run: Simulation) -> list[tuple[float, PeerId]]:
    """When who crashed."""
    crashes: list[tuple[float, PeerId]] = []
    heard = run.world.on_fault

    def listen(peer: PeerId, uncommitted_s: float, now: float) -> None:
        heard(peer, uncommitted_s, now)
        crashes.append((now, peer))

    run.world.on_fault = listen
    outcome = run.run()
    assert outcome.microbatches_lost == outcome.double_counted == 0
    return crashes


def test_crashes_fall_at_the_same_time_however_long_an_iteration_is(tmp_path: Path) -> None:
    spec = TimedChurnSpec(uptime_s=3.0, downtime_s=0.5)
    fast, slow = (faults_of(simulation(by_time(tmp_path, spec, forward_s=s))) for s in (0.01, 0.03))
    assert len(fast) > 3 and fast[:3] == slow[:3]


def test_uptimes_have_their_mean_and_their_tail(tmp_path: Path) -> None:
    def drawn(tail: float) -> list[float]:
        run = simulation(by_time(tmp_path, TimedChurnSpec(uptime_s=100.0, downtime_s=1.0, tail=tail)))
        numbers = stream(0, "uptimes")
        return sorted(run.timed_churn.up_s(numbers) for _ in range(20_000))

    even, heavy = drawn(0.0), drawn(3.0)
    for times in (even, heavy):
        assert sum(times) / len(times) == pytest.approx(100, rel=0.05)
    assert heavy[0] == pytest.approx(200 / 3, rel=0.01) and heavy[-1] > 1.2 * even[-1]


def test_a_region_goes_dark_as_a_whole_but_for_the_last_of_a_stage(tmp_path: Path) -> None:
    """There is one region: at one moment all crash but one of each stage, and come back together."""
    crashes = faults_of(simulation(by_time(tmp_path, TimedChurnSpec(dark_every_s=2.0, dark_s=0.3))))
    moments = sorted({at for at, _ in crashes})
    first = [peer for at, peer in crashes if at == moments[0]]
    assert len(first) == 6 and {str(peer).split("_")[1] for peer in first} == {"1", "2", "3"}
    assert len(moments) > 1


def test_slow_peers_cost_time_and_nobody_is_lost(tmp_path: Path) -> None:
    even = simulation(by_time(tmp_path, TimedChurnSpec())).run()
    run = simulation(by_time(tmp_path, TimedChurnSpec(slow_every_s=0.5, slow_s=5.0, slow_factor=6.0)))
    assert not faults_of(run)
    assert run.metrics.iteration_seconds[-1] > 2 * even.iteration_seconds[-1]


def test_the_clairvoyant_bound_leaves_out_who_crashed_and_no_iteration_beats_it(tmp_path: Path) -> None:
    scenario = replace(story(tmp_path, iterations=8, stage_peers=3), churn=ChurnSpec(0.3, 0.5))
    run = simulation(scenario)
    outcome = run.run()
    bounds = run.clairvoyant_s()
    assert outcome.extra["crashes"] and len(bounds) == 7 == len(outcome.measured_seconds)
    whole_s = bound_of(run.swarm).iteration_s
    assert (
        all(bound is not None and bound >= whole_s * 0.999 for bound in bounds) and max(b or 0 for b in bounds) > 1.2 * whole_s
    )
    for took_s, bound_s in zip(outcome.measured_seconds, bounds, strict=True):
        assert bound_s is not None and took_s >= bound_s * 0.999
    assert clairvoyant_s(run.swarm, [PeerId("relay_1_0"), PeerId("relay_2_0")]) is None  # nobody in stage 3


def test_a_swarm_goes_on_of_which_most_of_a_stage_has_come_since_the_last_commit() -> None:
    """Newcomers cannot check the proof of that commit: they stood in the way of the next one for good."""
    scenario = replace(load_scenario(SCENARIOS / "acceptance_heavy_tailed.toml"), iterations=6)
    outcome = Simulation(scenario, Arm("swarm", default_config("swarm"), memory=Memory.RECOMPUTED), 0).run()
    assert outcome.microbatches_lost == outcome.double_counted == 0


def test_swarm_as_the_paper_reads_it_begins_microbatches_again(tmp_path: Path) -> None:
    from gwtf_p2p.ab.trials.arms import parse_arm

    scenario = replace(story(tmp_path, iterations=10, stage_peers=3), churn=ChurnSpec(0.3, 0.5))
    lost = [Simulation(scenario, parse_arm("swarm-as-read"), seed) for seed in range(4)]
    outcomes = [run.run() for run in lost]
    assert sum(float(o.extra["restarted_whole"]) for o in outcomes) > 0
    assert all(o.microbatches_lost == o.double_counted == 0 for o in outcomes)
    usual = Simulation(scenario, parse_arm("swarm"), 0).run()
    assert usual.extra["restarted_whole"] == 0


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("mean_uptime_s = 9.0", "mean_downtime_s: missing"),
        ("region_dark_s = 9.0", "region_dark_every_s: missing"),
        ("tail = 2.0", "tail: expected a number above 1, beside"),
        ("mean_uptime_s = 9.0\nmean_downtime_s = 1.0\ntail = 0.5", "tail: expected a number above 1"),
        ("slow_factor = 2.0", "slow_factor: expected beside slow_every_s"),
        ("slow_every_s = 1.0\nslow_s = 1.0", "slow_factor: expected beside slow_every_s, and another one than 1"),
        ("uptime = 1.0", "uptime: unknown field"),
    ],
)
def test_wrong_churn_by_time_is_refused_by_name(tmp_path: Path, lines: str, named: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(TEXT.format(**USUAL) + f"[churn_by_time]\n{lines}\n")
    with pytest.raises(InputError, match=named):
        load_scenario(path)


def test_the_scenarios_are_the_acceptance_swarm() -> None:
    usual = load_scenario(SCENARIOS / "acceptance_churn_20.toml")
    for name in ("by_the_hour", "heavy_tailed", "regions_dark", "slow_peers"):
        other = load_scenario(SCENARIOS / f"acceptance_{name}.toml")
        assert (other.model, other.links, other.groups) == (usual.model, usual.links, usual.groups)
        assert other.timed_churn != TimedChurnSpec()
