"""Which process runs with which identity: a file beside the identity, so that `gwtf pause` finds whom to tell.

A file whose identity nobody has locked is a leftover of a process that is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gwtf_p2p.live.libp2p.identity import is_in_use

SUFFIX = ".pid"


@contextmanager
def running(identity_path: Path) -> Iterator[None]:
    """This process runs with this identity meanwhile. Where nothing can be written it is found by nobody, and runs."""
    file = identity_path.with_suffix(SUFFIX)
    with suppress(OSError):
        file.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


def running_peers(identity_path: Path | None, folder: Path) -> dict[Path, int]:
    """Process ids by identity file: of the one that is given, else of all in the folder that a process has locked."""
    files = [identity_path.with_suffix(SUFFIX)] if identity_path is not None else sorted(folder.glob(f"*{SUFFIX}"))
    found: dict[Path, int] = {}
    for file in files:
        identity = identity_path if identity_path is not None else file.with_suffix(".key")
        with suppress(OSError, ValueError):
            pid = int(file.read_text())
            if pid > 1 and is_in_use(identity):
                found[identity] = pid
    return found
