"""The disk that checkpoints and copies lie on: how much of it they take, what goes for the next one, when it is tried again.

A write that has failed is not repeated before a pause, which grows, and not before there is room for what was refused: a full
disk, or a limit that is too small, lasts. Meanwhile nothing is fetched for it either.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from gwtf_p2p.protocol.core.backoff import Backoff
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.view.disk_room import OnDisk, making_room, room_for
from gwtf_p2p.training.state.checkpoint import checkpoint_sizes, drop_checkpoint

logger = logging.getLogger(__name__)

DISK_RETRY_S, MOST_DISK_RETRY_S = 30.0, 1800.0
"""After a write that failed: a full disk is a matter of minutes or days, not of seconds."""


class Disk:
    """Of one peer's folder. `limit_bytes`: what all checkpoints and copies in it may take; 0 for no limit. `clock`: seconds."""

    def __init__(self, folder: Path, limit_bytes: int, own: Stage) -> None:
        self.folder, self.limit_bytes, self._own = folder, limit_bytes, own
        self._pause = Backoff(DISK_RETRY_S, MOST_DISK_RETRY_S)
        self._refused: tuple[Stage, int] | None = None
        self.clock: Callable[[], float] = time.monotonic

    @property
    def used_bytes(self) -> int:
        """What checkpoints and copies take now."""
        return sum(each.size for each in self._there())

    def make_room(self, stage: Stage, version: int, size: int, spared: Collection[int | None]) -> None:
        """Drop what has to go for so many bytes. Raises InputError, and drops nothing, where that would not suffice."""
        if not self.limit_bytes:
            return
        there = self._there()
        going = making_room(there, OnDisk(stage, version, size), self.limit_bytes, self._own, spared)
        if going is None:
            used = sum(each.size for each in there)
            expected = f"stage {stage} after {version} iterations takes {size / 1e6:.3g} MB, beside {used / 1e6:.3g} MB"
            raise InputError("--disk_gb", f"{self.limit_bytes / 1e9:g}", expected)
        for each in going:
            logger.info("the checkpoint of stage %d after %d iterations goes: --disk_gb", each.stage, each.version)
            drop_checkpoint(self.folder, each.stage, each.version)

    def room_for(self, stage: Stage, spared: Collection[int | None]) -> int:
        """How many bytes a checkpoint of this stage may take, by the limit and by what is free."""
        try:
            free = shutil.disk_usage(_nearest(self.folder)).free
            if not self.limit_bytes:
                return free
            return min(free, room_for(self._there(), stage, self.limit_bytes, self._own, spared))
        except OSError as error:
            logger.warning("%s: %s", self.folder, error)
            return 0  # a folder that cannot be looked at takes nothing

    def refused(self, stage: Stage, size: int) -> None:
        """So many bytes could not be written, or would not have been."""
        self._refused = stage, size
        pause_s = self._pause.failed(self.clock())
        logger.error("%s: the disk is left alone for %.0f s, and until it has room", self.folder, pause_s)

    def succeeded(self) -> None:
        """Something was written."""
        self._refused = None
        self._pause.succeeded()

    def takes(self, spared: Collection[int | None]) -> bool:
        """Whether to fetch what is to be kept: the disk has not just refused, and has room for what it refused."""
        if not self._pause.may_try(self.clock()):
            return False
        return self._refused is None or self.room_for(self._refused[0], spared) > self._refused[1]

    def _there(self) -> list[OnDisk]:
        return [OnDisk(Stage(stage), version, size) for (stage, version), size in checkpoint_sizes(self.folder).items()]


def _nearest(folder: Path) -> Path:
    """The folder, or what there is of the way to it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
