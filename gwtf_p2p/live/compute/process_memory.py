"""What a process of days does about its memory at its start, once.

glibc gives threads that allocate at the same time arenas of their own, eight for each core, and hardly returns what was freed
in one to the system or to another. A peer has some nine threads, whose tensors come and go, and most of them wait for
one another anyway. So it has `MOST_ARENAS`, unless its user says otherwise by glibc's own variables. And it keeps what is freed
of up to 32 MB at a time for later: in a peer, whose gradients come and go, 2 bytes for each of 31 million parameters. So what
takes `MAPPED_BYTES` goes back to the system when it is freed (training took as long), the rest before and after each step.

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
MAPPED_BYTES = 2 << 20
TRIMMED_BYTES = 8 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of malloc.h."""


def bound_arenas(environment: Mapping[str, str] = os.environ) -> bool:
    """Have malloc use `MOST_ARENAS` arenas, those that there are stay, and keep little of what is freed. Call it before threads
    start.

    False where the user has set any of it (`MALLOC_...`, `GLIBC_TUNABLES`), and with another C library than glibc.
    """
    if any(name.startswith("MALLOC_") for name in environment) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    options = {_M_ARENA_MAX: MOST_ARENAS, _M_MMAP_THRESHOLD: MAPPED_BYTES, _M_TRIM_THRESHOLD: TRIMMED_BYTES}
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(option, value) for option, value in options.items()]
    return all(done)


def give_back() -> None:
    """What malloc keeps of what was freed goes to the system, with glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def set_imports_aside() -> None:
    """Exempt from collection all objects that exist now. Call it after the imports and before what is meant to end."""
    gc.collect(1)  # what is young may be garbage, the whole of it is not worth a collection
    gc.freeze()
