"""What a peer tells in lines: that nobody answers is said once, and again when it is for another reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import gwtf_p2p
from gwtf_p2p.cli.shared.peer_reports import Teller, line

ROOT = Path(gwtf_p2p.__file__).parent


def test_an_initial_peer_that_does_not_answer_is_told_once_for_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Teller(as_json=False, console=None)
    for left_s, why in [(300.0, "refused"), (299.0, "refused"), (297.0, "refused"), (293.0, "no answer"), (285.0, "no answer")]:
        tell({"name": "waiting", "reasons": [["/ip4/10.0.0.1/tcp/1", why]], "seconds_left": left_s})
    assert capsys.readouterr().out.splitlines() == [
        "no initial peer answers, trying on for 300 s: /ip4/10.0.0.1/tcp/1: refused",
        "no initial peer answers, trying on for 293 s: /ip4/10.0.0.1/tcp/1: no answer",
    ]


def test_what_is_lost_with_a_copy_is_told() -> None:
    lost = {"name": "peer_lost", "peer": "QmLost123456", "reason": "connection reset"}
    assert line(lost) == "lost peer 123456: connection reset"
    assert line({**lost, "steps_lost": 1}).endswith("what its copy has learned in 1 step since the last average goes with it")
    assert "averaged every 8 iterations" in line({"name": "run", "run_id": "r", "replica_sync": 8})
    assert line({"name": "run", "run_id": "r", "replica_sync": 0}) == ""


@pytest.mark.parametrize(
    ("stages", "fields", "words"),
    [
        (
            [2],
            {"rebuilt_in_s": None, "can_be_rebuilt": True},
            "Start a peer that has it, start the data peers again with --rebuild_lost_stage, or begin again under another",
        ),
        ([3], {"rebuilt_in_s": None, "can_be_rebuilt": False}, "Start a peer that has it, or begin again under another run_id"),
        ([0], {"rebuilt_in_s": None}, "Start a peer that has it, or begin again under another run_id"),
        ([2], {"rebuilt_in_s": 25.0}, "It is rebuilt from its neighbours' weights in 25 s, unless a peer comes that has it"),
    ],
)
def test_what_lacks_is_told_with_what_can_be_done(stages: list[int], fields: dict[str, Any], words: str) -> None:
    report = {"name": "no_common_version", "version": 7, "stages_without": stages, **fields}
    said = line(report)
    assert said.startswith(f"the run cannot go on: stage {stages[0]} lacks version 7") and words in said


def test_no_two_reports_have_one_name() -> None:
    """A peer's screen, log and monitor go by the name: `paused` once was both a run's and a peer's, and ended the data peer."""
    ours = {
        package: {name for path in (ROOT / package).rglob("*.py") for name in re.findall(pattern, path.read_text())}
        for package, pattern in (("protocol", r'ctx\.report\(\s*"(\w+)"'), ("live", r'"name": "(\w+)"'))
    }
    assert {"run_paused", "going_back"} <= ours["protocol"] and {"paused", "online"} <= ours["live"]
    assert not ours["protocol"] & ours["live"]


def test_a_run_that_pauses_is_told_by_a_peer_that_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Teller(as_json=False, console=None)
    tell({"name": "run_paused", "iteration": 7, "skipped": 3, "peers": ["12D3KooWabcdef"]})
    assert "the last 3 steps were skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (
            {"name": "run_complete", "iterations": 1, "written": True},
            "the run is complete here after 1 step: its checkpoint is written",
        ),
        ({"name": "catching_up", "iteration": 3, "donors": ["a"]}, "catching up: fetching version 3 from 1 peer"),
        (
            {"name": "serves_before_moments", "version": 3},
            "works with the weights of version 3; what the optimizer keeps with them is still coming",
        ),
        ({"name": "run_paused", "skipped": 1}, "begins no iteration: the last step was skipped, as gradients were not finite"),
        ({"name": "memory_full", "kept": 1}, "takes nothing more: 1 microbatch kept until the iteration is committed"),
        (
            {"name": "run_over", "took_part": False, "iterations": 9},
            "the run is complete: 9 steps done, there is nothing left to do here",
        ),
    ],
)
def test_one_is_told_as_one(report: dict[str, object], said: str) -> None:
    assert line(report) == said


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"name": "left_out", "iteration": 4, "peers": ["Qm1234567"]}, "step    5  is averaged without 234567: a part was"),
        ({"name": "part_refused", "peer": "Qm1234567", "reason": "too large"}, "of 234567, is refused: too large"),
        ({"name": "loss_refused", "peer": "Qm1234567", "reason": "-1 is no loss"}, "without 234567: -1 is no loss"),
    ],
)
def test_whose_part_or_loss_is_refused_is_told(report: dict[str, object], words: str) -> None:
    assert words in line(report)
