"""`gwtf sim`: its output is the contract, and a user's mistake is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.verbs.sim import parse_seeds
from gwtf_p2p.protocol.errors import InputError
from tests.simulation.stories import story


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    story(tmp_path)
    return str(tmp_path / "story.toml")


def test_json_prints_one_object_per_seed_and_nothing_else(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", scenario, "--router", "swarm", "--seeds", "0-2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    assert all(line["router"] == "swarm" and line["microbatches_lost"] == 0 for line in lines)


def test_the_table_has_a_row_per_seed_and_the_median(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", scenario, "--router", "swarm", "--seeds", "3,5"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[-3:] == ["3", "5", "median"]


def test_settings_reach_the_router(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sim", scenario, "--router", "swarm", "--seeds", "0", "--json"]
    assert main(command) == main([*command, "--set", "in_flight=1"]) == 0
    free, limited = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert limited["mean_iteration_seconds"] > 1.5 * free["mean_iteration_seconds"]


def test_a_trace_is_written(scenario: str, tmp_path: Path) -> None:
    assert main(["sim", scenario, "--router", "swarm", "--seeds", "0", "--trace", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--router", "magic"], "expected one of"),
        (["--router", "swarm", "--set", "gamma=2"], "gamma"),
        (["--router", "swarm", "--set", "gamma=fast"], "gamma: expected a number"),
        (["--router", "swarm", "--set", "in_flight=1.5"], "in_flight: expected a whole number"),
        (["--router", "swarm", "--set", "delta=2"], "delta: unknown setting"),
        (["--router", "swarm", "--set", "gamma"], "FIELD=VALUE"),
        (["--router", "swarm", "--seeds", "4-1"], "--seeds"),
        (["--router", "swarm", "--seeds", "x"], "--seeds"),
        (["--router", "swarm", "--seeds", "0-1", "--trace", "t.json"], "--trace"),
        (["--router", "swarm", "--seeds", "0", "--trace", "t.png"], "--trace"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    scenario: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", scenario, *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err and len(printed.err.splitlines()) == 1 and not printed.out


def test_a_missing_scenario_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "nowhere.toml", "--router", "swarm"]) == 2
    assert "nowhere.toml" in capsys.readouterr().err


def test_seed_lists() -> None:
    assert parse_seeds("0-2,7") == (0, 1, 2, 7)
    for wrong in ("", "1,,2", "-1", "1-", "0,0", "0-999999"):
        with pytest.raises(InputError):
            parse_seeds(wrong)
