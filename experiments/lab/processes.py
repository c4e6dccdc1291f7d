"""Programs inside a host of the lab, each in a session of its own, with a log.

The kernel kills them when the lab's process dies; p2pd of a killed peer ends by itself, and whatever else they started is
killed by whoever removes the run (`runs`).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_S = 10.0


@dataclass(frozen=True)
class HostProcess:
    """A program in a host. `log` has its standard output and error."""

    host: str
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.popen.poll()

    def signal(self, number: int) -> None:
        """To the program alone, not to what it started. Nothing happens when it has ended."""
        self.popen.send_signal(number)

    def wait(self, limit_s: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self.popen.wait(limit_s)

    def stop(self, limit_s: float = STOP_S) -> int:
        """SIGTERM, and SIGKILL to its whole session when that does not end it; returns the exit code. May be called twice."""
        self.popen.terminate()
        try:
            self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.popen.wait(limit_s)

    def kill(self) -> None:
        """SIGKILL to everything that it started, as a power cut would."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")


def inside_command(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in a namespace, under the pid that starts it, and dies with its parent."""
    return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", namespace, *argv]


def start_process(host: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> HostProcess:
    """Start it in a session of its own; its input is empty. `environment` is added to ours."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    return HostProcess(host, log, popen)
