"""Each lab run owns the namespaces whose names begin with its prefix, and whoever finds it dead removes them.

A run is a folder under /run/gwtf-lab with a lock that the lab's process holds; the kernel drops the lock when that process
ends, however it ends. A janitor process waits for that end and removes the run at once, even after SIGKILL; should the janitor
be gone too, the next lab does it (`sweep`). Removing: SIGKILL to every process inside, then the namespaces, with their
devices. This file is also the janitor's program, so it imports nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

FOLDER = Path("/run/gwtf-lab")
NAMESPACES = Path("/run/netns")
ETC_FILES = Path("/etc/netns")
"""`ip netns exec NAME` shows the files of /etc/netns/NAME in place of those in /etc."""

_NEWBORN = ".new"
_NEWBORN_GRACE_S = 60.0
_KILL_S = 5.0
_COMMAND_S = 30.0


class Run:
    """A living run: its name and its lock. Made by `begin`, ended by `end`."""

    def __init__(self, name: str, lock: IO[bytes]) -> None:
        self.name = name
        self._lock = lock
        program = [sys.executable, "-I", "-S", str(Path(__file__)), name]
        self._janitor = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def janitor_pid(self) -> int:
        return self._janitor.pid

    def end(self) -> None:
        """Remove everything. May be called twice."""
        try:
            remove(self.name)
        finally:
            self._lock.close()
            if self._janitor.stdin is not None:
                self._janitor.stdin.close()
            self._janitor.wait(_COMMAND_S)


def begin() -> Run:
    """A new run, after those of dead labs were removed."""
    sweep()
    name = secrets.token_hex(3)
    newborn = FOLDER / f"{name}{_NEWBORN}"
    newborn.mkdir(parents=True, mode=0o700)
    lock = (newborn / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    newborn.rename(FOLDER / name)  # only a locked folder gets a name that is swept
    return Run(name, lock)


def prefix(run: str) -> str:
    """Begins the names of the namespaces of a run."""
    return f"gwtf-{run}-"


def folder(run: str) -> Path:
    return FOLDER / run


def sweep() -> list[str]:
    """Remove the runs whose lab is dead; returns their names."""
    removed = []
    for path in sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []:
        if path.name.endswith(_NEWBORN):
            if time.time() - path.stat().st_mtime > _NEWBORN_GRACE_S:
                shutil.rmtree(path, ignore_errors=True)
        elif _is_unlocked(path / "lock"):
            remove(path.name)
            removed.append(path.name)
    return removed


def remove(run: str) -> None:
    """Kill what runs inside and remove all namespaces of this run, whatever is there of them."""
    names = namespaces(run)
    kill_inside(names)
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_COMMAND_S, check=False)
        shutil.rmtree(ETC_FILES / name, ignore_errors=True)
    if ETC_FILES.is_dir() and not any(ETC_FILES.iterdir()):
        ETC_FILES.rmdir()
    shutil.rmtree(folder(run), ignore_errors=True)


def namespaces(run: str) -> list[str]:
    """Names of the namespaces of this run."""
    begins = prefix(run)
    return sorted(p.name for p in NAMESPACES.iterdir() if p.name.startswith(begins)) if NAMESPACES.is_dir() else []


def processes_inside(names: list[str]) -> list[int]:
    """Processes whose network is one of these namespaces."""
    inodes = {f"net:[{(NAMESPACES / name).stat().st_ino}]" for name in names}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "ns" / "net").readlink()) in inodes:
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
    return found


def kill_inside(names: list[str]) -> None:
    """SIGKILL until nobody is left; what forks while it dies is met in the next round."""
    end = time.monotonic() + _KILL_S
    while time.monotonic() < end:
        pids = [pid for pid in processes_inside(names) if pid != os.getpid()]
        if not pids:
            return
        watched = []
        for pid in pids:
            try:
                watched.append(os.pidfd_open(pid))
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for descriptor in watched:
            select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            os.close(descriptor)


def _is_unlocked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _wait_and_remove(run: str) -> None:
    """The janitor: standard input ends when the lab's process does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    lock = folder(run) / "lock"
    while lock.exists() and not _is_unlocked(lock):
        time.sleep(0.05)  # its last file descriptors are being closed
    if lock.exists() or namespaces(run):
        remove(run)


if __name__ == "__main__":
    _wait_and_remove(sys.argv[1])
