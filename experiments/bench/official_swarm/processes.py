"""Processes of the official swarm, forked from one warm parent as a local swarm's are, and the CPU seconds of all of them."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from gwtf_p2p.ab.live.cpu import cpu_seconds

GRACE_S = 5.0
PRELOADED = ["experiments.bench.official_swarm.theirs", "gwtf_p2p.live.peer.process"]
"""Both sides' processes have one parent, whoever starts first."""

Main = Callable[..., None]


class SideFailed(Exception):
    """A side did not get to where it should; the message says what was waited for, with the end of a log."""


def descendants(root: int) -> list[int]:
    """Processes that descend from this one, itself left out."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = list(children.get(root, []))
    for pid in found:
        found += children.get(pid, [])
    return found


def spent(pids: list[int]) -> dict[int, float]:
    """CPU seconds, user and system, of each of them so far."""
    return {pid: cpu_seconds(pid) for pid in pids}


def is_p2pd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "p2pd"
    except OSError:
        return False


class Talkers:
    """Processes that say something now and then, by name; each has a process group of its own and a log in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, Any] = {}
        self._pipes: dict[Connection, str] = {}
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, name: str, role: Main, *arguments: Any) -> None:
        """`role(pipe, *arguments)` in a process of its own."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_run, args=(role, self._folder / f"{name}.log", theirs, *arguments))
        process.start()
        theirs.close()
        self._processes[name], self._pipes[ours] = process, name

    def ask(self, name: str) -> None:
        """Begin, or say how far you are."""
        next(pipe for pipe, whose in self._pipes.items() if whose == name).send("")

    def until(self, what: str, holds: Callable[[str, dict[str, Any]], bool], deadline_s: float) -> None:
        """Hear them until `holds` says so of something said. Raises SideFailed."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            for pipe in wait(list(self._pipes), timeout=1.0):
                assert isinstance(pipe, Connection)
                name = self._pipes[pipe]
                try:
                    if holds(name, pipe.recv()):
                        return
                except EOFError:
                    raise SideFailed(f"{what}: {name} ended\n{self._tail(name)}") from None
        raise SideFailed(f"{what}: not in {deadline_s:.0f} s\n{self._tail(next(iter(self._processes)))}")

    def _tail(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """End them with all that they have started."""
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        for process in self._processes.values():
            process.join(max(0.1, end - time.monotonic()))
            _signal_group(process.pid, signal.SIGKILL)
            process.join()


def _run(role: Main, log: Path, pipe: Connection, *arguments: Any) -> None:
    os.setsid()
    with log.open("ab", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    role(pipe, *arguments)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
