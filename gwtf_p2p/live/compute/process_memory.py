"""What a process of days does about its memory at its start, once.

glibc gives threads that allocate at the same time arenas of their own, eight for each core, and hardly returns what was freed
in one to the system or to another. A peer has some nine threads, whose tensors come and go, and most of them wait for
one another anyway. So it has `MOST_ARENAS`, unless its user says otherwise by glibc's own variables.

Python's garbage collector walks through everything that imports have left (390,000 objects with torch and transformers) at each
full collection, a quarter of a second in which the peer answers nobody. What is there when a peer starts to serve is set aside.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Mapping

MOST_ARENAS = 2
_M_ARENA_MAX = -8
"""Of malloc.h."""


def bound_arenas(environment: Mapping[str, str] = os.environ) -> bool:
    """Have malloc use `MOST_ARENAS` arenas; those that there are stay. Call it before threads start.

    False where the user has set the number (`MALLOC_ARENA_MAX`, `GLIBC_TUNABLES`), and with another C library than glibc.
    """
    if "MALLOC_ARENA_MAX" in environment or "glibc.malloc.arena_max" in environment.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MOST_ARENAS))


def set_imports_aside() -> None:
    """Exempt from collection all objects that exist now. Call it after the imports and before what is meant to end."""
    gc.collect(1)  # what is young may be garbage, the whole of it is not worth a collection
    gc.freeze()
