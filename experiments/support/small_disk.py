"""A disk of few megabytes that can be filled up and freed: a tmpfs, which needs root and Linux."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SMALL_DISK_MB = 64
BLOCK = bytes(1 << 16)


class NoSmallDisk(Exception):
    """None can be had here; the message says why."""


@dataclass
class Disk:
    """Mounted at `folder`. `newest_before` is the last iteration that was kept when it was full, -1 before that; `newest_after`
    the last when it was taken away."""

    folder: Path
    is_full: bool = False
    newest_before: int = -1
    newest_after: int = -1

    def fill(self) -> None:
        """With what is not the training's, until not a block more is taken."""
        ballast = self.folder / "films"
        if not self.is_full:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(BLOCK):
                        pass
                except OSError:
                    self.newest_before = self.newest
            self.is_full = True

    def free(self) -> None:
        if self.is_full:
            (self.folder / "films").unlink()
            self.is_full = False

    @property
    def newest(self) -> int:
        """The last iteration of which a checkpoint is there, 0 for none."""
        return max((int(path.parent.name[5:]) for path in self.folder.glob("stage_*/step_*/manifest.json")), default=0)

    @property
    def is_written_again(self) -> bool:
        """It has been full, and had a later checkpoint than then in the end."""
        return 0 <= self.newest_before < self.newest_after

    @property
    def story(self) -> str:
        return (
            f"full at iteration {self.newest_before}, newest at the end {self.newest_after}" if self.newest_before >= 0 else ""
        )


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Raises NoSmallDisk."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "small", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        raise NoSmallDisk("mounting a small disk needs root and Linux")
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.newest_after = disk.newest
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
