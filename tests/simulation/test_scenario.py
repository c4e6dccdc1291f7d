"""Scenario files: what they may say, what is refused, and what the seed draws from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sim_scale import __main__ as sim_scale
from experiments.sim_scale.scenario import LARGE, scaled, to_toml
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.wire.messages import Backward, Forward
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.simulation.scenario.draw import draw_fate, draw_peers, thinned
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec, load_scenario
from gwtf_p2p.simulation.scenario.sizes import Sizes
from tests.simulation.stories import story

SCENARIOS = Path(__file__).parent.parent.parent / "experiments" / "scenarios"

GOOD = """
name = "story"
seeds = [0, 1]
iterations = 4
warmup_iterations = 1
[model]
stages = 2
microbatch_bytes = 1000
microbatches_per_data_peer = 3
stage_gradient_bytes = 2000
stage_state_bytes = 3000
[links]
uniform = { latency_ms = 10, gbps = 0.8 }
peer_upload_mbps = [8, 80]
[[peers]]
role = "data"
count = 2
forward_s = 0.02
backward_s = 0.04
[[peers]]
role = "stage"
count_per_stage = 2
forward_s = [0.1, 0.2]
backward_factor = 2.0
capacity = [1, 2]
region = "any"
[churn]
crash_probability_per_iteration = 0.25
rejoin_probability_per_iteration = 0.5
"""


def load(tmp_path: Path, text: str = GOOD):
    path = tmp_path / "story.toml"
    path.write_text(text)
    return load_scenario(path)


def test_units_and_every_field(tmp_path: Path) -> None:
    scenario = load(tmp_path)
    link = scenario.links.between("any", "any")
    assert (link.latency_s, link.bandwidth_bytes_per_s) == (0.01, 1e8)
    assert scenario.links.line_bytes_per_s == (1e6, 1e7)
    assert (scenario.iterations, scenario.warmup_iterations, scenario.seeds, scenario.data_peers) == (4, 1, (0, 1), 2)
    assert (scenario.model.stages, scenario.model.stage_state_bytes) == (2, 3000)
    assert scenario.churn == ChurnSpec(0.25, 0.5)
    peers = {peer.id: peer for peer in draw_peers(scenario, 0)}
    assert set(peers) == {"data_0", "data_1", "relay_1_0", "relay_1_1", "relay_2_0", "relay_2_1"}
    assert all(p.backward_s == 2 * p.forward_s for p in peers.values() if p.stage)
    assert peers[PeerId("data_0")].compute_s == pytest.approx(0.06)
    assert sum(s for w, s in peers[PeerId("data_0")].work_seconds().items() if "count" not in w.value) == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("iterations = 4", "iterations = 0", "iterations"),
        ("iterations = 4", "iterations = true", "iterations"),
        ("iterations = 4", "iteration = 4", "iterations"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds"),
        ("warmup_iterations = 1", "warmup_iterations = 4", "warmup_iterations"),
        ('name = "story"', "name = 3", "name"),
        ("stages = 2", "stages = 2.5", "model.stages"),
        ("stages = 2", "stages = 2\nlayers = 3", "model.layers"),
        ("microbatch_bytes = 1000", "", "model.microbatch_bytes"),
        ("gbps = 0.8", "gbps = 0", "links.uniform.gbps"),
        ("gbps = 0.8", "gbps = inf", "links.uniform.gbps"),
        ("gbps = 0.8", "gbps = nan", "links.uniform.gbps"),
        ("latency_ms = 10", "latency_ms = -1", "links.uniform.latency_ms"),
        ("uniform = {", 'table = "x.toml"\nuniform = {', "links.table"),
        ("[8, 80]", "[8, 'fast']", "links.peer_upload_mbps"),
        ('role = "data"', 'role = "hub"', "peers[0].role"),
        ('role = "data"\ncount = 2', 'role = "data"\ncount_per_stage = 2', "peers[0].count"),
        ("backward_s = 0.04", "", "peers[0].backward_s"),
        ("backward_factor = 2.0", "backward_factor = 2.0\nbackward_s = 1", "peers[1].backward_s"),
        ("capacity = [1, 2]", "capacity = [0]", "peers[1].capacity"),
        ('region = "any"', 'region = "Atlantis"', "peers[1].region"),
        ('role = "stage"\ncount_per_stage', 'role = "data"\ncount', "peers[1].capacity"),
        ("= 0.25", "= 1.5", "churn.crash_probability_per_iteration"),
        ("= 0.5", "= 0.5\nfreeze = 1", "churn.freeze"),
        ("count_per_stage = 2", "count_per_stage = 100000", "peers"),
        ("[churn]", "[[churn]]", "churn"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.where.endswith("story.toml") and caught.value.field == field and "\n" not in str(caught.value)


def test_both_roles_are_needed(tmp_path: Path) -> None:
    stage_peer_part = GOOD[GOOD.index('[[peers]]\nrole = "stage"') : GOOD.index("[churn]")]
    with pytest.raises(InputError, match='role = "stage"'):
        load(tmp_path, GOOD.replace(stage_peer_part, ""))


def test_files_that_are_no_scenarios(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a readable file"):
        load_scenario(tmp_path / "none.toml")
    with pytest.raises(InputError, match="expected TOML"):
        load(tmp_path, "name = [")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="expected TOML"):
        load_scenario(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ('regions = ["X", "Y"]\nsame_region = {latency_ms = 1, gbps = 1}\nlink = [{between = ["X", "Z"]}]', "link[0].between"),
        ('regions = ["X", "X"]', "regions"),
        ('regions = ["X", "Y", "Z"]\nsame_region = {latency_ms = 1, gbps = 1}\n'
         'link = [{between = ["X", "Y"], latency_ms = 1, gbps = 1}]', "link"),
        ('regions = ["X", "Y"]\nsame_region = {latency_ms = 1, gbps = 1}\n'
         'link = [{between = ["X", "Y"], latency_ms = 1, gbps = 1}, {between = ["Y", "X"], latency_ms = 1, gbps = 1}]',
         "link[1].between"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_link_table_names_that_file(tmp_path: Path, table: str, field: str) -> None:
    (tmp_path / "links.toml").write_text(table)
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD.replace("uniform = { latency_ms = 10, gbps = 0.8 }", 'table = "links.toml"'))
    assert caught.value.where.endswith("links.toml") and caught.value.field == field


def test_the_projects_scenarios_load_and_their_names_are_their_files() -> None:
    files = [path for path in SCENARIOS.glob("*.toml") if path.name != "ten_regions.toml"]
    assert len(files) >= 13
    for path in files:
        scenario = load_scenario(path)
        assert scenario.name == path.stem


def test_churn_and_lines_do_not_change_the_peers() -> None:
    """Arms are paired by seed: only what the file varies differs."""
    converged, wild = (load_scenario(SCENARIOS / f"ten_regions_home_churn_{p}.toml") for p in (0, 20))
    assert draw_peers(converged, 3) == draw_peers(wild, 3)
    assert draw_peers(converged, 3) != draw_peers(converged, 4)
    cloud = load_scenario(SCENARIOS / "ten_regions_cloud_churn_0.toml")
    assert [(p.region, p.forward_s) for p in draw_peers(cloud, 3)] == [
        (p.region, p.forward_s) for p in draw_peers(converged, 3)
    ]


def test_draws_are_the_same_on_any_machine() -> None:
    """Fixed values, because every published figure depends on them."""
    peers = {peer.id: peer for peer in draw_peers(load_scenario(SCENARIOS / "ten_regions_home_churn_20.toml"), 0)}
    first = peers[PeerId("relay_1_0")]
    assert (first.forward_s, first.capacity, first.region, first.line_bytes_per_s) == (0.2, 1, "Seoul", 12.5e6)
    fate = draw_fate(ChurnSpec(0.2, 0.5), 0, PeerId("relay_1_0"), 7)
    assert (fate.crashes, fate.rejoins, round(fate.moment, 9)) == (False, True, 0.187559486)


def test_fates_have_their_probabilities() -> None:
    fates = [draw_fate(ChurnSpec(0.2, 0.5), 1, PeerId("relay_1_0"), i) for i in range(2000)]
    assert sum(f.crashes for f in fates) / 2000 == pytest.approx(0.2, abs=0.03)
    assert sum(f.rejoins for f in fates) / 2000 == pytest.approx(0.5, abs=0.03)
    assert sum(f.moment for f in fates) / 2000 == pytest.approx(0.5, abs=0.03)


def test_thin_data_peers_send_ids_and_stages_do_their_work(tmp_path: Path) -> None:
    scenario = story(tmp_path, stages=3)
    model = replace(scenario.model, microbatch_bytes=4 << 20, stage_gradient_bytes=40 << 20)
    full, thin = Sizes.of(model, WireSpec()), Sizes.of(model, WireSpec(), thin=True)
    assert thin.end_bytes == 8 << 10 and thin.activation_bytes == full.activation_bytes + (4 << 10)
    about = MicrobatchId(PeerId("data_0"), 0, 0)
    forwards = [thin.of_push(Forward(about, (1,), Stage(stage))) for stage in (1, 2, 3, 4)]
    assert forwards == [8 << 10, thin.activation_bytes, thin.activation_bytes, 8 << 10]
    between, end = full.gradient_bytes, 8 << 10
    assert [thin.of_push(Backward(about, (1,), Stage(stage))) for stage in (0, 1, 2, 3)] == [end, between, between, end]
    assert [thin.averaged(Stage(stage)) for stage in range(4)] == [0, *[(160 << 20) // 3] * 3]  # fewer layers at the ends
    assert [full.averaged(Stage(stage)) for stage in range(4)] == [40 << 20] * 4
    peers = draw_peers(scenario, 0)
    thinned_ = thinned(peers)
    per_data_peer, moved = (sum(p.compute_s for p in each if p.stage == 0) / scenario.data_peers for each in (peers, thinned_))
    stages = [sum(p.compute_s for p in thinned_ if p.stage == k) for k in (1, 2, 3)]
    count, before = len([p for p in peers if p.stage == 1]), sum(p.compute_s for p in peers if p.stage == 1)
    assert moved < 0.01 and stages == pytest.approx([before + count * per_data_peer / 3] * 3)


def test_averages_of_copies_are_of_all_that_a_stage_holds_and_come_seldom(tmp_path: Path) -> None:
    model = replace(story(tmp_path, stages=3).model, stage_gradient_bytes=40 << 20, stage_state_bytes=120 << 20)
    sizes = Sizes.of(model, WireSpec(), sync=ReplicaSync(4, 6))
    assert [sizes.averaged_in(Stage(1), iteration) >> 20 for iteration in range(6)] == [0, 0, 0, 160, 0, 160]
    assert sizes.averaged_in(Stage(1), 0) == 4 and sizes.mean_averaged(Stage(1)) == 40 << 20
    assert Sizes.of(model, WireSpec()).averaged_in(Stage(1), 0) == 40 << 20


def test_a_subspace_of_a_fiftieth_with_int8_is_at_most_0_008_of_float32_and_thin_products_0_08(tmp_path: Path) -> None:
    model = replace(story(tmp_path).model, microbatch_bytes=4 << 20, stage_gradient_bytes=40 << 20)
    plain = Sizes.of(model, WireSpec())
    assert (plain.activation_bytes, plain.average_bytes) == (4 << 20, 40 << 20)
    thin = Sizes.of(model, WireSpec("int8", "int8", "powersgd"), 50)
    assert 0.005 * plain.both_bytes < thin.both_bytes <= 0.008 * plain.both_bytes
    assert thin.average_bytes == 0.0625 * plain.average_bytes
    eighth = Sizes.of(model, WireSpec(), 8)
    assert eighth.gradient_bytes == plain.gradient_bytes // 8
    assert eighth.activation_bytes == plain.activation_bytes // 8 + plain.activation_bytes // 1024


# ---- `large.toml` with other counts (`experiments.sim_scale`)


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
