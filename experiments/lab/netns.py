"""Step into a network namespace: for one thread for a moment, or for a process for good."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(path: Path) -> None:
    """Move the calling thread into the namespace; threads and processes that it starts follow. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set(descriptor, path)
    finally:
        os.close(descriptor)


def show_files(folder: Path) -> None:
    """This process and its children see the files in `folder` in place of those of /etc, as `ip netns exec` does it.

    Raises OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare", folder)
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount", folder)
    for file in folder.iterdir():
        _check(_libc.mount(os.fsencode(file), os.fsencode(Path("/etc") / file.name), None, _MS_BIND, None), "mount", file)


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Sockets made in this block belong to the namespace, and stay there when the thread is back. Raises OSError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(path)
        try:
            yield
        finally:
            _set(home, path)
    finally:
        os.close(home)


def _set(descriptor: int, path: Path) -> None:
    _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns", path)


def _check(result: int, call: str, path: Path) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", str(path))
