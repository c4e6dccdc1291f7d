"""Which process runs with which identity: a file beside the identity, so that `gwtf pause` finds whom to tell.

The process that wrote the file holds a lock on it. One that nobody has locked is a leftover of a process that is gone, and its
number may be that of any other program by now, whoever holds the identity meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gwtf_p2p.live.libp2p.identity import is_in_use

SUFFIX = ".pid"


@contextmanager
def running(identity_path: Path) -> Iterator[None]:
    """This process runs with this identity meanwhile. Where nothing can be written it is found by nobody, and runs."""
    path = identity_path.with_suffix(SUFFIX)
    with ExitStack() as held:
        with suppress(OSError):
            file = held.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def running_peers(identity_path: Path | None, folder: Path) -> dict[Path, int]:
    """Process ids by identity file: of the one that is given, else of all in the folder; of those that run."""
    files = [identity_path.with_suffix(SUFFIX)] if identity_path is not None else sorted(folder.glob(f"*{SUFFIX}"))
    found: dict[Path, int] = {}
    for file in files:
        identity = identity_path if identity_path is not None else file.with_suffix(".key")
        with suppress(OSError, ValueError):
            pid = int(file.read_text())
            if pid > 1 and is_in_use(file):
                found[identity] = pid
    return found
