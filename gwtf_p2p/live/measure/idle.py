"""Is somebody at this machine? What Linux tells: terminals, the desktop's seat, and the processors.

- The newest time at which somebody has typed at a terminal (the access time of its device, as `w` takes it).
- Whether the seat has an active session that is not idle, if `loginctl` is there.
- How much of all processors other processes have taken since the last look (/proc/stat less this process and its children).
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from gwtf_p2p.protocol.membership.permission import IdleWatch

_ASK_S = 5.0


class MachineUse:
    """Looks at the machine; `look` may take some milliseconds, and does not belong into the event loop."""

    def __init__(self) -> None:
        self._watch = IdleWatch()
        self._ticks = _ticks()

    def look(self) -> str:
        """Why the machine is in use; '' if it is idle."""
        former, self._ticks = self._ticks, _ticks()
        whole, busy, own = (now - before for now, before in zip(self._ticks, former, strict=True))
        share = max(0, busy - own) / whole if whole > 0 else 0.0
        return self._watch.look(time.monotonic(), _input_ago_s(), _seat_is_used(), share)


def _input_ago_s() -> float | None:
    """Since somebody typed at any terminal; None where there is none."""
    newest = []
    for path in (*Path("/dev/pts").glob("[0-9]*"), *Path("/dev").glob("tty[0-9]*")):
        try:
            newest.append(path.stat().st_atime)
        except OSError:
            continue
    return max(0.0, time.time() - max(newest)) if newest else None


def _seat_is_used() -> bool:
    try:
        asked = ["loginctl", "show-seat", "seat0", "-p", "ActiveSession", "-p", "IdleHint"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=_ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    fields = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    return bool(fields.get("ActiveSession")) and fields.get("IdleHint") == "no"


def _ticks() -> tuple[int, int, int]:
    """Clock ticks since the machine's start: of all processors, those that were busy, and those of this process and its own."""
    try:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 0, 0
    idle = fields[3] + fields[4]
    return sum(fields), sum(fields) - idle, sum(_process_ticks(pid) for pid in _own_pids())


def _own_pids() -> list[int]:
    me = os.getpid()
    children: list[int] = []
    for path in Path(f"/proc/{me}/task").glob("*/children"):
        try:
            children += [int(word) for word in path.read_text().split()]
        except (OSError, ValueError):
            continue
    return [me, *children]


def _process_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0
