"""What `experiments.sim_scale` runs: `large.toml` with other counts, read by `gwtf sim` as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.sim_scale import __main__ as sim_scale
from experiments.sim_scale.scenario import LARGE, scaled, to_toml
from gwtf_p2p.simulation.scenario.scenario import load_scenario


@pytest.mark.parametrize("stage_peers", [100, 1000, 10_000])
def test_a_size_is_the_large_scenario_with_other_counts(stage_peers: int, tmp_path: Path) -> None:
    file = tmp_path / "scaled.toml"
    file.write_text(to_toml(scaled(stage_peers, 3)))
    made, large = load_scenario(file), load_scenario(LARGE)
    assert sum(group.count * made.model.stages for group in made.groups if not group.is_data) == stage_peers
    assert made.data_peers == stage_peers // 50
    assert (made.model, made.links) == (large.model, large.links)
    assert (made.churn.crash_probability, made.churn.rejoin_probability) == (0.1, 0.5)
    assert [group.forward_s for group in made.groups] == [group.forward_s for group in large.groups]


def test_a_run_tells_cpu_and_memory_of_its_own_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim_scale.main(["--peers", "20", "--iterations", "1", "--router", "greedy", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["sizes"][0]
    assert told["microbatches"] == 8
    assert told["cpu_s"] > 0 and told["peak_mb"] > 10 and told["ratio"] == 1.0


def test_a_size_that_takes_too_long_is_ended_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim_scale.main(["--peers", "200", "--iterations", "3", "--most_cpu_s", "1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not through" in lines[0]
    assert json.loads(lines[-1])["sizes"][0]["microbatches"] is None
