"""The main job end to end: real peers in their own processes, trained to the end, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

SMALL = ["--steps", "3", "--stages", "2", "--peers_per_stage", "1", "--microbatches", "2", "--sequence_length", "32"]
DEADLINE_S = 150


def daemons() -> set[int]:
    """Process ids of every p2pd on this machine."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if command.endswith(b"/p2pd"):
            found.add(int(process.name))
    return found


@pytest.mark.slow  # `.ci/run` runs the demo itself
def test_the_demo_trains_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = daemons()
    command = [sys.executable, "-m", "gwtf_p2p", "demo", *SMALL, "--json", "--keep_logs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["steps"] == 3
    assert summary["microbatches"] == {"done": 12, "retried": 0, "lost": 0, "double_counted": 0}
    assert summary["last_loss"] < summary["first_loss"]
    assert not (daemons() - before), "a p2pd outlived its peer"
    events = [json.loads(line) for line in (tmp_path / "stage1.0.events.jsonl").read_text().splitlines()]
    assert {"Offered", "Delivered", "Computed", "Stepped"} <= {event["event"] for event in events}


@pytest.mark.parametrize(("port", "reason"), [(9, "127.0.0.1 port 9")])
def test_an_unreachable_initial_peer_is_named(port: int, reason: str, tmp_path: Path) -> None:
    maddr = f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    flags = ["--run_id", "r", "--initial_peers", maddr, "--port", "0", "--timeout", "2"]
    command = [sys.executable, "-m", "gwtf_p2p", "peer", *flags]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "GWTF_HOME": str(tmp_path)}
    )
    assert result.returncode == 3, result.stderr
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
