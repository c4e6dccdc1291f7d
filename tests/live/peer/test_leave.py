"""Leaving: Ctrl+C drains and hands over, a second Ctrl+C leaves at once; nobody has to wait for who has left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

DEADLINE_S = 180.0
"""How long what must come may take on a busy machine. It is no measure of speed."""

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

Peer = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Starts `gwtf` verbs as a user does, each with an identity of its own."""
    peers: list[Peer] = []

    def go(*words: str) -> Peer:
        where = ["--port", "0", "--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--identity_path", str(tmp_path / f"{len(peers)}.key")]
        with (tmp_path / f"{len(peers)}.log").open("w") as log:
            peers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gwtf_p2p", *words, *where, "--json"],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "GWTF_HOME": str(tmp_path)},
                )
            )
        return peers[-1]

    yield go
    for peer in peers:
        peer.kill()
        peer.communicate()


def until(peer: Peer, name: str) -> dict[str, Any]:
    """The next report of this name."""
    assert peer.stdout is not None
    for line in peer.stdout:
        report: dict[str, Any] = json.loads(line)
        if report["name"] == name:
            return report
    raise AssertionError(f"it ended with {peer.wait(DEADLINE_S)} before it said {name}")


def leave(peer: Peer) -> tuple[int, list[str]]:
    """Ctrl+C: the exit code, and what it said meanwhile."""
    peer.send_signal(signal.SIGINT)
    said, _ = peer.communicate(timeout=DEADLINE_S)
    return peer.returncode, [json.loads(line)["name"] for line in said.splitlines()]


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
