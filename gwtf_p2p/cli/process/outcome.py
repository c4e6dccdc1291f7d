"""How a verb ends: the user's mistakes, and what a machine lacks, as one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from gwtf_p2p.live.compute.memory_errors import OutOfMemory, memory_errors
from gwtf_p2p.protocol.errors import InputError

SCARCE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}
"""How a system says that it has no more of something, and what can be done."""


def outcome(typed: str | None, work: Callable[[], int]) -> int:
    """The exit code of `work`. `typed`: the verb, as its user knows it."""
    try:
        with memory_errors("go on"):
            return work()
    except OutOfMemory as error:
        print(f"gwtf {typed}: {error}", file=sys.stderr)
        return error.exit_code
    except InputError as error:
        print(f"gwtf {typed}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`gwtf ... | head`); Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in SCARCE:
            raise
        what = error.filename or "this machine"
        print(f"gwtf {typed}: {what}: {error.strerror}: {SCARCE[error.errno]}", file=sys.stderr)
        return OutOfMemory.exit_code
