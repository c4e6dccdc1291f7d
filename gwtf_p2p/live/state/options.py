"""Which checkpoints a peer writes and keeps, and how states are cut, in plain data: what is known before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES, LEAST_CHUNK_BYTES = 1 << 20, 1 << 10
"""What a chunk has, and the least that a manifest may say it has: an emulated state is cut into as many as a real one."""


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
