"""Which checkpoints a peer writes and keeps, in plain data: what the command line says before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """`folder` None: none are written. `every` n steps, `keep` the newest n, and what a lost stage may need (`replicas`).

    `copies`: how many peers of neighbouring stages keep a copy of each stage's checkpoints; `copy_bytes_per_s`: how fast this
    peer fetches what it keeps for others.
    """

    folder: Path | None = None
    every: int = 10
    keep: int = 3
    copies: int = 1
    copy_bytes_per_s: float = 8e6
