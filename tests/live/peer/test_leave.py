"""Leaving: Ctrl+C drains and hands over, a second Ctrl+C leaves at once; nobody has to wait for who has left."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.peer.verbs import DEADLINE_S, Peer, leave, until

pytestmark = pytest.mark.live

RUN = """
run_id = "leave"
seed = 0
stages = 1
model = "tiny-llama"
dataset = "stdlib"
sequence_length = 32
microbatch_size = 1
microbatches_per_data_peer = 4
peers_per_stage = 2
"""


def test_ctrl_c_drains_and_a_second_one_does_not_wait(start: Callable[..., Peer], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    bootstrap = start("bootstrap")
    there = ["--initial_peers", until(bootstrap, "started")["maddrs"][0]]
    data = start("data", "--new_run", str(tmp_path / "run.toml"), *there)
    until(data, "started")
    idle = start("peer", "--run_id", "leave", *there)
    until(idle, "online")
    code, said = leave(idle)  # the run waits for a second stage peer: nothing is in flight
    assert (code, "drained" in said) == (0, True)

    busy, other = start("peer", "--run_id", "leave", *there), start("peer", "--run_id", "leave", *there)
    until(busy, "stepped")
    code, said = leave(busy)
    assert (code, "drained" in said) == (0, True)
    for _ in range(2):
        step = until(data, "stepped")
        assert step["of"] == step["different"] == 4, "the others go on, and nothing is lost"

    other.send_signal(signal.SIGSTOP)  # so that it cannot have left in between
    other.send_signal(signal.SIGINT)
    data.send_signal(signal.SIGINT)  # it drains for up to a minute: its microbatches are with a peer that does not answer
    until(data, "draining")
    data.send_signal(signal.SIGINT)
    data.communicate(timeout=DEADLINE_S)
    assert data.returncode == 130
    other.kill()
