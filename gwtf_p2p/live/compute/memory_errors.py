"""Too little memory, in the words of a user: what torch and Python raise for it, in their many ways, becomes one exception.

Nothing heavy is imported here: whoever only has to know the exception does not load torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_WORDS = re.compile(r"can't allocate memory|not enough memory|out of memory|cannot allocate memory", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)
_ADVICE = "a smaller --capacity, --max_kept_gb with --spill_dir, or a run with more and smaller stages takes less"


class OutOfMemory(Exception):
    """This machine, or its accelerator, has too little memory for what this peer holds. Exit code 6."""

    exit_code = 6


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Raises OutOfMemory, which says `what` was being done, for whatever means that. Other exceptions pass."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not isinstance(error, MemoryError) and not _WORDS.search(str(error)):
            raise
        asked = _ASKED.search(str(error))
        wanted = f", {asked[1]} more" if asked else ""
        raise OutOfMemory(f"too little memory to {what}{wanted}: {_ADVICE}") from error
