"""Which checkpoints a peer writes and keeps, in plain data: what the command line says before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """`folder` None: none are written. The run says how often they are, and how many of the newest are kept; `every` n steps
    this peer writes another (0: never), and it keeps the newest `keep` if that is more, and what a lost stage may need.

    `copies`: how many peers of neighbouring stages keep a copy of each stage's checkpoints; `copy_bytes_per_s`: how fast this
    peer fetches what it keeps for others. `disk_bytes`: what checkpoints and copies may take together (0: no limit).
    """

    folder: Path | None = None
    every: int = 0
    keep: int = 0
    copies: int = 1
    copy_bytes_per_s: float = 8e6
    disk_bytes: int = 0
