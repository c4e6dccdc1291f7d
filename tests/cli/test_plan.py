"""`gwtf plan`: the published instances to their exact optimum, and mistakes in one line with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.cli.verbs.plan import PLANNERS
from gwtf_p2p.protocol.flow.plan_keeper import Flow, Plan, check_plan
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.flow.problem_file import parse_problem

CASES = Path(__file__).parents[3] / "shared" / "data" / "flow_cases"
EXACT = {"one_data_peer_8x4": (11, 376), "one_data_peer_6x6": (18, 16863), "two_data_peers_6x6": (13, 10588)}
SMALL: dict[str, Any] = {
    "name": "small",
    "stages": 1,
    "peers": [
        {"id": "d", "role": "data", "stage": 0, "demand": 2},
        {"id": "r", "role": "stage", "stage": 1, "capacity": 1},
        {"id": "q", "role": "stage", "stage": 1, "capacity": 1},
    ],
    "links": [{"from": a, "to": b, "cost": c} for a, b, c in (("d", "q", 1), ("d", "r", 2), ("q", "d", 3), ("r", "d", 4))],
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


def case(name: str) -> Path:
    path = CASES / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no published instances in {CASES.parent.parent.name}/ beside the repository")
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1, "one object on stdout and nothing else"
    plain: dict[str, Any] = json.loads(captured.out)
    return plain


def checked(problem: Problem, plain: dict[str, Any]) -> None:
    """The answer's own figures, against the problem."""
    flows = tuple(Flow(f["data_peer"], tuple(f["peers"][1:-1]), f["cost"]) for f in plain["flows"])
    assert all(f["peers"][0] == f["peers"][-1] == f["data_peer"] for f in plain["flows"])
    check_plan(problem, Plan(flows))
    costs = [f["cost"] for f in plain["flows"]]
    assert (plain["flow_count"], plain["total_cost"], plain["max_cost"]) == (len(costs), sum(costs), max(costs))


@pytest.mark.parametrize("router", ["gwtf", "optimal"])
@pytest.mark.parametrize("name", EXACT)
def test_published_instances_are_solved_to_the_optimum(name: str, router: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = case(name)
    plain = answer(capsys, str(path), "--router", router)
    checked(parse_problem(path.read_text(), path.name), plain)
    assert (plain["flow_count"], plain["total_cost"]) == EXACT[name]
    assert plain["lower_bound"] == plain["total_cost"]


@pytest.mark.parametrize(("name", "cost"), [("one_data_peer_8x4", 423), ("one_data_peer_6x6", 18509)])
def test_greedy_packs_the_published_instances_as_others_found(name: str, cost: int, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(capsys, str(case(name)), "--router", "greedy")
    assert (plain["flow_count"], plain["total_cost"]) == (EXACT[name][0], cost)


@pytest.mark.parametrize("router", PLANNERS)
def test_the_answer_has_the_fields_of_the_contract(router: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(capsys, str(small), "--router", router)
    checked(parse_problem(small.read_text(), small.name), plain)
    wanted = {"router", "flows", "flow_count", "total_cost", "max_cost", "seconds", "reason"}
    assert set(plain) - {"lower_bound"} == wanted | ({"messages"} if router == "negotiated" else set())
    assert plain["router"] == router
    assert [f["cost"] for f in plain["flows"]] == [4, 6]
    assert ("lower_bound" in plain) == (router in ("gwtf", "optimal"))


def test_random_follows_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(case("one_data_peer_6x6"))
    one, same, other = (answer(capsys, path, "--router", "random", "--seed", seed)["flows"] for seed in ("1", "1", "2"))
    assert one == same != other


def test_people_get_the_flows_drawn_stage_by_stage(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(small)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["data", "peer", "stage", "1", "data", "peer", "cost"],
        ["d", ">", "q", ">", "d", "4"],
        ["d", ">", "r", ">", "d", "6"],
    ]
    assert lines[4].startswith("gwtf: 2 flows, total cost 10, dearest 6, lower bound 10, ")
    assert lines[5] == "2 of 2 flows wanted; cost 10 is the least possible"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--router", "best"], "gwtf plan: --router: expected one of gwtf, negotiated, greedy, random, optimal, got 'best'"),
        (["--cost", "linear"], "gwtf plan: --cost: expected one of paper, got 'linear'"),
        (["--seed", "x"], "gwtf plan: argument --seed: invalid int value: 'x'"),
    ],
)
def test_unknown_names_are_answered_with_the_choices(
    arguments: list[str], message: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["plan", str(small), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "x"', "expected JSON, but"),
        (b"\xff\xfe", "expected UTF-8 text, but"),
        (json.dumps({**SMALL, "stages": 0}).encode(), "stages: expected a whole number from 1 to 1000, got 0"),
    ],
)
def test_a_bad_file_is_named_with_its_field(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert exit_code(["plan", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gwtf plan: {path}: {message}")
    assert captured.err.count("\n") == 1


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.json"
    assert exit_code(["plan", str(path)]) == 2
    assert capsys.readouterr().err == f"gwtf plan: {path}: expected a readable file, but No such file or directory\n"


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
