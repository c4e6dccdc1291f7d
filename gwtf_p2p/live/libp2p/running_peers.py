"""Which process runs with which identity: a file beside the identity, so that `gwtf pause` finds whom to tell. An identity that
lies elsewhere than in the folder of identities is named by a file there.

The process that wrote the file holds a lock on it. One that nobody has locked is a leftover of a process that is gone, and its
number may be that of any other program by now, whoever holds the identity meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gwtf_p2p.live.libp2p.identity import is_in_use

SUFFIX = ".pid"
ELSEWHERE = "elsewhere"


@contextmanager
def running(identity_path: Path, folder: Path | None = None) -> Iterator[None]:
    """This process runs with this identity meanwhile, and is found in `folder` if one is given. Where nothing can be
    written it is found by nobody, and runs."""
    identity = identity_path.absolute()
    files = [identity_path.with_suffix(SUFFIX)]
    if folder is not None and identity.parent != folder.absolute():
        name = hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]
        files.append(folder / ELSEWHERE / f"{name}{SUFFIX}")
    with ExitStack() as held:
        for path in files:
            with suppress(OSError):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = held.enter_context(path.open("a+"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                file.write(f"{os.getpid()}\n{identity}\n")
                file.flush()
        try:
            yield
        finally:
            for path in files:
                with suppress(OSError):
                    path.unlink()


def running_peers(identity_path: Path | None, folder: Path) -> dict[Path, int]:
    """Process ids by identity file: of the one that is given, else of all that are found in the folder; of those that run."""
    files = [identity_path.with_suffix(SUFFIX)] if identity_path is not None else sorted(folder.glob(f"*{SUFFIX}"))
    if identity_path is None:
        files += sorted((folder / ELSEWHERE).glob(f"*{SUFFIX}"))
    found: dict[Path, int] = {}
    for file in files:
        with suppress(OSError, ValueError, UnicodeError):
            pid, identity, *_ = [*file.read_text().splitlines(), ""]
            if int(pid) > 1 and is_in_use(file):
                found[identity_path or Path(identity)] = int(pid)
    return found
