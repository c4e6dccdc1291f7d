"""How much memory this process takes, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes() -> int:
    """Of this process; 0 where the kernel does not say (it is read from /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
