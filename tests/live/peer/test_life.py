"""The life of a run, as the people see it who run its peers: it ends, it is left, it comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.peer.verbs import DEADLINE_S, Peer, until

pytestmark = pytest.mark.live

RUN = """
run_id = "life"
seed = 0
stages = 1
model = "tiny-llama"
dataset = "stdlib"
sequence_length = 16
microbatch_size = 1
microbatches_per_data_peer = 2
total_iterations = {iterations}
checkpoint_every = 4
"""


def manifests(folder: Path) -> list[str]:
    """Complete checkpoints, as STAGE/STEP."""
    return sorted(f"{int(path.parts[-3][6:])}/{int(path.parts[-2][5:])}" for path in folder.glob("*/*/manifest.json"))


def rest(peer: Peer) -> tuple[int, list[dict[str, Any]]]:
    """It ends by itself: its exit code, and what it said until then."""
    said, _ = peer.communicate(timeout=DEADLINE_S)
    return peer.returncode, [json.loads(line) for line in said.splitlines()]


def test_a_finished_run_leaves_its_last_weights_on_every_disk_and_ends(start: Callable[..., Peer], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN.format(iterations=6))
    there = ["--initial_peers", until(start("bootstrap"), "started")["maddrs"][0]]
    data = start("data", "--new_run", str(tmp_path / "run.toml"), *there, "--checkpoint_dir", str(tmp_path / "d"))
    peer = start("peer", "--run_id", "life", *there, "--checkpoint_dir", str(tmp_path / "p"), "--copies", "0")
    until(peer, "run_complete_everywhere")
    late = start("peer", "--run_id", "life", *there)
    for ended in (data, peer):
        code, said = rest(ended)
        assert code == 0 and said[-1]["name"] == "run_over"
    assert manifests(tmp_path / "p") == ["1/4", "1/6"] and {"0/4", "0/6"} <= set(manifests(tmp_path / "d"))
    code, said = rest(late)
    assert code == 0 and said[-1]["name"] == "run_over", "a newcomer is told that there is nothing left to do"
