"""Comparisons: arms as text, the best SWARM as baseline, ratios paired by seed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments.compare import compare, interval, main, markdown
from experiments.run import main as run_main
from experiments.support.arms import SETS, expand, parse_arm
from experiments.support.figures import svg
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.routers.swarm import SwarmConfig
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.simulation.swarm.build import Arm, Memory
from tests.simulation.stories import story

WRONG_WIRES = (
    "int8-subspace",
    "int8-subspace1",
    "int8-subspacex",
    "-subspace8",
    "int8-subspace99999",
    "int8-thin-subspace8",
    "-thin",
    "int8-elastic-thin",
    "int8-delayed-thin",
    "int8-sync1",
    "int8-sync",
    "-sync8",
    "int8-sync8-delayed",
)


def test_an_arm_is_a_router_with_settings_and_a_memory() -> None:
    assert parse_arm("swarm:gamma=0.1:in_flight=4@strict") == Arm(
        "swarm", SwarmConfig(gamma=0.1, in_flight=4), "exact", Memory.STRICT
    )


def test_an_arm_may_name_the_format_in_which_its_tensors_travel() -> None:
    arm = parse_arm("swarm:gamma=0.1@strict/int4")
    assert (arm.memory, arm.wire) == (Memory.STRICT, WireSpec("int4", "int8", "int8"))
    assert parse_arm("gwtf/int8").wire == parse_arm("gwtf", base=WireSpec("int8", "int8", "int8")).wire
    assert parse_arm("swarm+rebalance").wire == WireSpec()
    assert parse_arm("gwtf/int8+powersgd").wire.averages == "powersgd"
    arm = parse_arm("gwtf@recomputed/int8-subspace50")
    assert (arm.wire.gradients, arm.subspace, arm.thin) == ("int8", 50, False)
    assert parse_arm("swarm/float32-thin-delayed").delayed and not parse_arm("swarm/float32-thin").delayed
    with pytest.raises(InputError, match="expected no delayed steps where whole microbatches begin again"):
        parse_arm("swarm-as-read/float32-delayed")
    assert parse_arm("gwtf/int8-thin-elastic").elastic and not parse_arm("gwtf/int8-thin").elastic
    arm = parse_arm("gwtf/int8-subspace50-thin-sync16-elastic")
    assert (arm.replica_sync, arm.thin, arm.elastic, arm.subspace) == (16, True, True, 50)
    assert arm.wire == WireSpec("int8", "int8", "float32"), "copies are averaged without rounding"
    assert parse_arm("gwtf/int8-subspace50-thin").thin and parse_arm("swarm/float32-thin").wire == WireSpec()


@pytest.mark.parametrize(
    "text",
    [
        "magic",
        "swarm:delta=1",
        "swarm:gamma=9",
        "swarm@much",
        "swarm:in_flight",
        "swarm/int9",
        *[f"gwtf/{wire}" for wire in WRONG_WIRES],
    ],
)
def test_a_wrong_arm_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_arm(text)


def test_sets_are_written_out_and_every_arm_of_them_is_right() -> None:
    for name in SETS:
        arms = expand([f"+{name}"])
        assert len(arms) == len(set(arms)) > 10
        for arm in arms:
            parse_arm(arm)
        assert expand([f"+{name}/int8"]) == [f"{arm}/int8" for arm in arms]
    with pytest.raises(InputError):
        expand(["+nothing"])


def line(arm: str, seed: int, seconds: float) -> dict[str, object]:
    return {
        "scenario": "story", "arm": arm, "seed": seed, "mean_iteration_seconds": seconds, "bound_iteration_seconds": 1.0,
        "wasted_compute_fraction": 0.0, "microbatches_lost": 0, "double_counted": 0, "virtual_seconds": 10.0,
        "cpu_seconds": 0.1, "memory": "unlimited" if arm.endswith("@unlimited") else "limited",
    }  # fmt: skip


def test_ratios_are_paired_by_seed_against_the_best_baseline() -> None:
    lines = [line("gwtf", s, 2.0 * (s + 1)) for s in range(5)] + [line("swarm", s, 4.0 * (s + 1)) for s in range(5)]
    lines += [line("swarm:gamma=0.1", s, 9.0 * (s + 1)) for s in range(5)]
    by_arm = {c.arm: c for c in compare(lines, "swarm*")}
    assert by_arm["gwtf"].baseline == "swarm"
    assert (by_arm["gwtf"].ratio, by_arm["gwtf"].low, by_arm["gwtf"].high) == (0.5, 0.5, 0.5)
    assert by_arm["swarm:gamma=0.1"].ratio == pytest.approx(2.25)
    assert markdown(list(by_arm.values())).count("\n") == 4


def test_what_one_could_do_who_knows_the_future_is_said_where_lines_have_it() -> None:
    lines = [{**line("swarm", s, 4.0 + s), "mean_clairvoyant_seconds": 2.0} for s in range(3)]
    known, unknown = compare([*lines, line("gwtf", 0, 3.0)], "swarm*")
    assert (known.over_clairvoyant, unknown.over_clairvoyant) == (2.5, None)
    table = markdown([known, unknown]).splitlines()
    assert "| 2.50 |" in table[2] and "|  |" in table[3] and len({row.count("|") for row in table}) == 1


def test_arms_are_compared_with_arms_of_the_same_memory() -> None:
    lines = [line(arm, 0, s) for arm, s in (("gwtf", 2.0), ("swarm", 4.0), ("gwtf@unlimited", 3.0), ("swarm@unlimited", 1.0))]
    assert {(c.arm, c.ratio) for c in compare(lines, "swarm*")} == {
        ("swarm", 1.0), ("gwtf", 0.5), ("swarm@unlimited", 1.0), ("gwtf@unlimited", 3.0),
    }  # fmt: skip


def test_an_interval_covers_the_median_and_narrows_with_more_seeds() -> None:
    few, many = interval([1.0, 2.0, 3.0]), interval([1.0, 2.0, 3.0] * 20)
    assert few[0] <= 2.0 <= few[1] and many[1] - many[0] <= few[1] - few[0]


def test_a_drawing_has_a_dot_per_run_and_the_medians() -> None:
    lines = [line("gwtf", s, 2.0) for s in range(5)] + [line("swarm", s, 4.0) for s in range(5)]
    drawing = ElementTree.fromstring(svg(compare(lines, "swarm*"), lines))
    circles = [e for e in drawing.iter("{http://www.w3.org/2000/svg}circle") if e.get("fill") != "none"]
    assert len(circles) == 10
    assert "0.50" in [e.text for e in drawing.iter("{http://www.w3.org/2000/svg}text")]


def test_no_baseline_is_said() -> None:
    with pytest.raises(ValueError, match="no arm matches"):
        compare([line("gwtf", 0, 1.0)], "swarm*")


def test_run_then_compare_and_runs_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story(tmp_path)
    results = tmp_path / "results.jsonl"
    scenario = str(tmp_path / "story.toml")
    command = ["--scenarios", scenario, "--arms", "swarm", "random", "--seeds", "0-1", "--out", str(results)]
    assert run_main(command) == run_main(command) == 0
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    assert len(lines) == 4 and {entry["arm"] for entry in lines} == {"swarm", "random"}
    assert main([str(results)]) == 0
    assert "**swarm**" in capsys.readouterr().out
    assert run_main([*command[:3], "magic", *command[5:]]) == 2
