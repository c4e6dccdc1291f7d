"""`gwtf monitor` and `gwtf routes` on a small swarm of real peers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

pytestmark = pytest.mark.live

DEADLINE_S = 150
DEMO = ["demo", "--steps", "5000", "--stages", "1", "--peers_per_stage", "1", "--data_peers", "1", "--sequence_length", "32"]


def gwtf(*words: str) -> list[str]:
    return [sys.executable, "-m", "gwtf_p2p", *words]


def look(verb: str, maddr: str) -> dict[str, Any]:
    command = gwtf(verb, "--initial_peers", maddr, "--run_id", "demo-0", "--once", "--json")
    told = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_a_running_swarm_is_seen_from_outside() -> None:
    with subprocess.Popen(gwtf(*DEMO), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            maddr = ""
            for line in demo.stdout:
                if "--initial_peers" in line:
                    maddr = line.split("--initial_peers ")[1].split()[0]
                if line.startswith("step") and int(line.split()[1]) >= 2:
                    break
            state, end = look("monitor", maddr), time.monotonic() + DEADLINE_S
            while state["iterations"] < 1 and time.monotonic() < end:
                state = look("monitor", maddr)  # what it reads in the DHT may be a few seconds old
            routes = look("routes", maddr)
        finally:
            demo.terminate()
            demo.communicate()
    assert {peer["role"] for peer in state["peers"]} == {"data", "stage"}
    assert all(peer["state"] == "ONLINE" for peer in state["peers"])
    assert state["iterations"] >= 1 and state["loss"] is not None
    assert routes["router"] == "gwtf" and sum(flow["microbatches"] for flow in routes["flows"]) == 4
