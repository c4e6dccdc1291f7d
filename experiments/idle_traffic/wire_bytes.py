"""Bytes that processes have put on their TCP connections, as the kernel counts them (`ss` of iproute2, Linux).

A connection's bytes are counted at both of its ends, and a connection that has ended between two looks takes with it what it
carried since the first: connections of p2pd live for hours, so that this is next to nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

_PID = re.compile(r"pid=(\d+),")
_SENT, _RECEIVED = re.compile(r"\bbytes_sent:(\d+)"), re.compile(r"\bbytes_received:(\d+)")


@dataclass(frozen=True, slots=True)
class Carried:
    """By one process so far, over the connections that it has now."""

    sent: int = 0
    received: int = 0

    def since(self, before: Carried) -> Carried:
        return Carried(max(0, self.sent - before.sent), max(0, self.received - before.received))


class NotCounted(Exception):
    """This machine does not tell."""


def carried(pids: Collection[int]) -> dict[int, Carried]:
    """Of each of these processes. Raises NotCounted."""
    try:
        told = subprocess.run(["ss", "-tinpH"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotCounted(f"ss (iproute2) is asked for the bytes of TCP connections: {error}") from error
    return counted(told, pids)


def counted(told: str, pids: Collection[int]) -> dict[int, Carried]:
    """From the lines of `ss -tinpH`: one of a connection and its owners, then one of its figures."""
    found = dict.fromkeys(pids, Carried())
    owners: list[int] = []
    for line in told.splitlines():
        if not line.startswith(("\t", " ")):
            owners = [int(pid) for pid in _PID.findall(line)]
            continue
        for pid in owners:
            if pid in found:
                figures = (int(match[1]) if (match := kind.search(line)) else 0 for kind in (_SENT, _RECEIVED))
                sent, received = figures
                found[pid] = Carried(found[pid].sent + sent, found[pid].received + received)
    return found
