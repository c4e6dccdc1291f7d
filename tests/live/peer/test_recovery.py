"""Real crashes of real peers: whatever is killed or frozen, and whenever, the weights come out as without the crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gwtf_p2p.live.emulation.faults import MOMENTS
from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL

pytestmark = pytest.mark.live

STEPS = 5  # the demo writes its first checkpoint after so many
SMALL = [
    *("--steps", str(STEPS), "--stages", "2", "--peers_per_stage", "2", "--data_peers", "1"),
    *("--microbatches", "4", "--microbatch_size", "1", "--sequence_length", "32", "--capacity", "2"),
]
LARGE = ["--stages", "1", "--peers_per_stage", "10", "--microbatches", "12"]
"""One stage of more peers than average all with all."""

DEADLINE_S = 600
"""How long a demo may take on a busy machine. It is no measure of speed."""


def demo(checkpoints: Path, churn: str = "", *more: str) -> dict[str, Any]:
    """The summary of a small demo; fails unless it ends well."""
    command = [sys.executable, "-m", "gwtf_p2p", "demo", *SMALL, *more, "--json", "--checkpoint_dir", str(checkpoints)]
    result = subprocess.run(
        [*command, *(["--churn", churn] if churn else [])], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    assert summary["microbatches"]["lost"] == summary["microbatches"]["double_counted"] == 0
    assert summary["steps"] == STEPS
    assert summary["bytes"]["direct"] > summary["bytes"]["activations"] // 2  # what is killed here had direct streams
    return summary


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the run in which nothing happens."""
    checkpoints = tmp_path_factory.mktemp("undisturbed")
    assert not demo(checkpoints)["recoveries"]
    return checkpoints


def assert_equal_weights(ours: Path, theirs: Path, stages: int = 2) -> None:
    """Of every stage, within 1e-4."""
    for stage in range(stages + 1):
        folder = f"stage_{stage:05d}/step_{STEPS:08d}/model.safetensors"
        for (name, mine), (other, expected) in zip(
            sorted(load_file(ours / folder).items()), sorted(load_file(theirs / folder).items()), strict=True
        ):
            assert name == other
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


IN_EVERY_RUN = ("backward_received",)
"""Then most has to be redone; each moment takes half a minute."""


@pytest.mark.parametrize("moment", [pytest.param(m, marks=() if m in IN_EVERY_RUN else pytest.mark.slow) for m in MOMENTS])
def test_a_stage_peer_is_killed(moment: str, undisturbed: Path, tmp_path: Path) -> None:
    summary = demo(tmp_path, f"kill stage stage=1 index=any at={moment} iter=3")
    assert summary["recoveries"] or moment == "averaging"
    assert_equal_weights(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_stage_peer_is_frozen(undisturbed: Path, tmp_path: Path) -> None:
    summary = demo(tmp_path, "freeze peer stage=2 index=any at=forward_received iter=3")
    assert summary["recoveries"]
    assert_equal_weights(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_stage_peers_are_killed_and_a_newcomer_takes_over(undisturbed: Path, tmp_path: Path) -> None:
    first, then = "kill peer stage=1 index=any at=backward_sent iter=2", "kill peer stage=2 index=any at=forward_sent iter=3"
    script = f"{first}; join stage=1 iter=3; {then}"
    demo(tmp_path, script)
    assert_equal_weights(tmp_path, undisturbed)


@pytest.mark.slow
def test_peers_of_a_stage_that_averages_in_rows_are_killed(tmp_path: Path) -> None:
    """One while they average, and then one more in a backward pass."""
    assert int(LARGE[3]) > MOST_ALL_WITH_ALL
    assert not demo(tmp_path / "undisturbed", "", *LARGE)["recoveries"]
    averaging, backward = (f"kill stage stage=1 index=any at={m}" for m in ("averaging", "backward_received"))
    summary = demo(tmp_path / "killed", f"{averaging} iter=2; {backward} iter=3", *LARGE)
    assert summary["recoveries"]
    assert_equal_weights(tmp_path / "killed", tmp_path / "undisturbed", stages=1)
