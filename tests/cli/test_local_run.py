"""When everybody of a local swarm is done, by what its peers have told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.cli.shared.churn import parse_churn
from gwtf_p2p.cli.shared.churn_run import faults_of
from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig, PeerLine, start_progress
from gwtf_p2p.live.emulation.faults import ALL_MOMENTS

STEPS = 3


def test_a_peer_that_was_given_the_last_weights_is_done_without_a_step_of_its_own(tmp_path: Path) -> None:
    local = LocalRun(LocalRunConfig(1, 1), SmallRun(stages=1, steps=STEPS).record(), tmp_path)
    try:
        for name, role in (("data0", "data"), ("stage1.0", "stage")):
            local.lines[name] = PeerLine(role, int(role == "stage"))
            tell(local, name, {"name": "online", "stage": int(role == "stage"), "version": 0})
        for iteration in range(STEPS):
            tell(local, "data0", stepped(iteration))
        tell(local, "data0", complete())
        tell(local, "stage1.0", stepped(0))
        assert not local.finished(STEPS)
        tell(local, "stage1.0", complete())
        assert local.finished(STEPS)
    finally:
        local.stop()


def test_a_peer_that_has_missed_the_end_leaves_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was thrown back while the others did the last steps, and heard of the end before it had their weights."""
    local = LocalRun(LocalRunConfig(1, 2), SmallRun(stages=1, steps=STEPS, peers_per_stage=2).record(), tmp_path)
    try:
        for name, role in (("data0", "data"), ("stage1.0", "stage"), ("stage1.1", "stage")):
            local.lines[name] = PeerLine(role, int(role == "stage"))
            tell(local, name, {"name": "online", "stage": int(role == "stage"), "version": 0})
            if name != "stage1.1":
                tell(local, name, complete())
        assert not local.finished(STEPS)
        last_words = ({"name": "run_over", "iterations": STEPS, "took_part": False}, {"name": "exited", "code": 0})
        monkeypatch.setattr(local.swarm, "poll", lambda timeout_s: [("stage1.1", words) for words in last_words])
        local.poll(0.0)
        assert local.finished(STEPS)
    finally:
        local.stop()


def test_a_peer_is_told_of_every_fault_that_may_be_its_own(tmp_path: Path) -> None:
    both = "; ".join(f"kill peer stage=1 index=any at=averaging iter={iteration}" for iteration in (2, 3))
    faults = faults_of(parse_churn(both, ALL_MOMENTS), ["stage1.0", "stage1.1", "data0"], tmp_path)
    assert sorted(faults) == ["stage1.0", "stage1.1"]
    assert [fault.iteration for fault in faults["stage1.0"]] == [1, 2], "counted from 0 there"
    assert faults["stage1.0"] == faults["stage1.1"], "they settle who breaks down by the same files"


def test_a_start_in_turn_says_how_long_it_takes() -> None:
    assert start_progress(1, 60, 3.0) == "1 of 60 peers online after 3 s"
    assert start_progress(16, 61, 10.0) == "16 of 61 peers online after 10 s, the rest in about 30 s"


def tell(local: LocalRun, name: str, report: dict[str, Any]) -> None:
    local._hear(name, report)


def stepped(iteration: int) -> dict[str, Any]:
    figures = {"useful_s": 1.0, "wasted_s": 0.0, "computed_s": 1.0, "seconds": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
    told = {"microbatches": 1, "of": 1, "loss": 2.0, "skipped": False, "skipped_for": [], "left_out": [], "different": 1}
    return {"name": "stepped", "iteration": iteration, **told, **figures}


def complete() -> dict[str, Any]:
    return {"name": "run_complete", "iterations": STEPS, "early": "", "written": False, "failure": "no --checkpoint_dir"}
