"""`gwtf` verbs as a user starts them, each in a process of its own, and what they say."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

DEADLINE_S = 180.0
"""How long what must come may take on a busy machine. It is no measure of speed."""

Peer = subprocess.Popen[str]


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
