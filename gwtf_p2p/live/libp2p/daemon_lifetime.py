"""Nothing is left behind: p2pd's sockets, processes whose parent died, and the connection by which a peer commands its p2pd.

A p2pd and its peer talk through unix sockets. Each daemon gets a private directory for them (0700, so no other user of the
machine can command it), with a lock that the peer's process holds. The kernel drops the lock when the process ends, however it
ends; the next peer that starts removes the directories whose lock is free. p2pd itself ends when its peer's connection breaks:
4-28 ms after SIGINT, SIGTERM or SIGKILL of the peer (measured), so it needs no help.

hivemind reads that connection in one task. An answer to a call that was cancelled at that very moment ends the task with an
error that nobody hears: from then on no call is answered and no request heard, while p2pd lives. `keep_reading` keeps such an
answer from it, and `commands_no_more` tells of an end for any other reason.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from hivemind.p2p.p2p_daemon_bindings.control import ControlClient

_LOCK = "lock"
_NEWBORN = ".new"
_NEWBORN_GRACE_S = 60.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# The longest name under a socket directory, and what an address of a unix socket may hold (macOS; Linux has 108).
_LONGEST_NAME = "/12345678/p2pclient-12345678901.sock"
_MAX_SOCKET_PATH = 103


class _Waiting(dict[UUID, asyncio.Future[Any]]):
    """Calls by id; of those that are done none is said to be there."""

    def __contains__(self, call: object) -> bool:
        future = self.get(call) if isinstance(call, UUID) else None
        return future is not None and not future.done()


class _Handling(dict[UUID, asyncio.Task[Any]]):
    """Requests by id, until they are done: hivemind keeps those that their callers have cancelled."""

    def __setitem__(self, call: UUID, task: asyncio.Task[Any]) -> None:
        super().__setitem__(call, task)
        task.add_done_callback(lambda _: self.pop(call, None))


def keep_reading(control: ControlClient) -> None:
    """Nothing that is cancelled ends the reading of this connection, or is kept."""
    control._pending_calls = _Waiting(control._pending_calls)
    control._handler_tasks = _Handling(control._handler_tasks)


async def commands_no_more(control: ControlClient) -> None:
    """Return when this connection to p2pd has ended, whoever ended it."""
    tasks = {task for task in (control._read_task, control._write_task) if task is not None}
    if not tasks:
        await asyncio.Event().wait()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


class SocketDir:
    """The socket directory of one daemon. Make it with `make_socket_dir`, end it with `remove`."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def make_socket_dir(base: Path) -> SocketDir:
    """A fresh, locked directory under `base`."""
    name = secrets.token_hex(4)
    newborn = base / f"{name}{_NEWBORN}"
    newborn.mkdir(mode=0o700)
    lock = (newborn / _LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return SocketDir(newborn.rename(base / name), lock)  # only a locked directory gets a name that is swept


def take_socket_dir(path: Path) -> SocketDir:
    """That of a daemon whose peer is gone. Raises OSError when it is gone too, or another process has it."""
    lock = (path / _LOCK).open("rb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return SocketDir(path, lock)


class KeptProcess:
    """A process that another one has started, as asyncio has its own. `descriptor` is the kernel's name of it (a pidfd), which
    never becomes another one's, as `pid` may."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self._descriptor = pid, descriptor

    @property
    def returncode(self) -> int | None:
        """None while it runs; else 0, as how it has ended is for whoever started it."""
        return 0 if select.select([self._descriptor], [], [], 0)[0] else None

    async def wait(self) -> int:
        """Return when it has ended."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        mine = os.dup(self._descriptor)
        loop.add_reader(mine, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(mine)
            os.close(mine)
        return 0

    def terminate(self) -> None:
        """Raises ProcessLookupError when it has ended."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def kill(self) -> None:
        """Raises ProcessLookupError when it has ended."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def socket_base(environment: Mapping[str, str]) -> Path:
    """Where the socket directories of this user live: the runtime directory of the session, else the temporary one."""
    user = os.getuid()
    candidates = [Path(tempfile.gettempdir()) / f"gwtf-{user}", Path("/tmp") / f"gwtf-{user}"]
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        candidates.insert(0, Path(runtime) / "gwtf")
    for base in candidates:
        if len(f"{base}{_LONGEST_NAME}") <= _MAX_SOCKET_PATH:
            base.mkdir(mode=0o700, exist_ok=True)
            status = base.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == user:
                return base
    return Path(tempfile.mkdtemp(prefix="gwtf-", dir="/tmp"))


def sweep(base: Path) -> list[Path]:
    """Remove the socket directories of peers that are surely gone; returns them.

    Surely: their process no longer holds the lock, and no daemon answers at their socket.
    """
    removed = []
    for path in sorted(base.iterdir()):
        if path.name.endswith(_NEWBORN):
            dead = _is_stillborn(path)
        else:
            dead = _is_unlocked(path / _LOCK) and not any(_answers(s) for s in path.glob("p2pd-*.sock"))
        if dead:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _is_stillborn(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _NEWBORN_GRACE_S
    except FileNotFoundError:
        return False  # its peer has just given it its name


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGTERM) -> bool:
    """Have the kernel send this process a signal when its parent ends (Linux; elsewhere nothing happens: False).

    `parent_pid` is the parent's own view of its pid: a parent that is dead already is noticed here. The signal comes when the
    *thread* that started this process ends, so the parent must start its children from a thread that stays.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)
    return True


def adopt_orphans() -> None:
    """What children of this process have started becomes its own when they end (Linux; elsewhere nothing happens)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _is_unlocked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
