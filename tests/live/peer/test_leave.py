"""Leaving, for good or for a while: what is held is handed over, and nobody has to wait for who has left."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
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


@pytest.mark.slow  # a minute
def test_a_paused_peers_microbatches_are_done_by_another_and_a_resumed_one_trains_again(
    start: Callable[..., Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GWTF_HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text(RUN)
    there = ["--initial_peers", until(start("bootstrap"), "started")["maddrs"][0]]
    data = start("data", "--new_run", str(tmp_path / "run.toml"), *there)
    until(data, "started")
    paused, other = start("peer", "--run_id", "leave", *there), start("peer", "--run_id", "leave", *there)
    until(paused, "stepped")

    assert main(["pause", "--identity_path", str(tmp_path / "2.key")]) == 0
    assert until(paused, "pausing")["text"].startswith("paused by hand")
    until(paused, "drained")
    assert until(paused, "paused")["code"] == "hand"
    for _ in range(3):
        step = until(other, "stepped")
        assert step["of"] == step["different"] == 4, "nothing is lost"
    assert step["microbatches"] == 4, "the other one does it all"

    assert main(["resume", "--identity_path", str(tmp_path / "2.key")]) == 0
    until(paused, "resumed")
    until(paused, "online")
    while not (step := until(paused, "stepped"))["microbatches"]:
        assert step["of"] == step["different"] == 4
    assert leave(paused)[0] == 0

    short = start("peer", "--run_id", "leave", *there, "--memory_gb", "0.1")
    assert short.wait(180) == 6
    said = (tmp_path / "4.log").read_text().strip().splitlines()
    told = r"gwtf peer: run leave does not fit: needed 0\.\d+ GB at least, --memory_gb allows 0\.1"
    assert re.fullmatch(told, said[-1]), said[-1]
    assert not any("Traceback" in line for line in said)
