"""Checkpoints of a running peer: a snapshot after every n-th step, written in a thread of its own, and read at the start.

The compute thread only copies the state; hashing and writing happen beside it, one checkpoint at a time. If a checkpoint is
still being written when the next is due, the next is skipped: training does not wait for a disk.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gwtf_p2p.live.compute import Compute
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.records import RunRecord
from gwtf_p2p.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """`folder` None: none are written. `every` n steps, `keep` the newest n."""

    folder: Path | None = None
    every: int = 10
    keep: int = 3


class Checkpoints:
    """One peer's checkpoints of its stage."""

    def __init__(self, options: CheckpointOptions, run: RunRecord, stage: Stage, compute: Compute) -> None:
        self.options, self.run, self.stage, self.compute = options, run, stage, compute
        self.written = 0
        self._task: asyncio.Task[None] | None = None

    def newest(self) -> tuple[int, dict[str, Tensor]] | None:
        """(iteration, state) of the newest intact checkpoint. Raises InputError if it is of another model."""
        if self.options.folder is None:
            return None
        checkpoint = newest_checkpoint(self.options.folder, self.run, self.stage)
        return (checkpoint.iteration, checkpoint.read()) if checkpoint else None

    def read(self, iteration: int) -> dict[str, Tensor]:
        """The state after so many iterations. Raises InputError when there is none."""
        if self.options.folder is None:
            raise InputError("--checkpoint_dir", "", f"none is given, and nobody else has iteration {iteration}")
        return load_checkpoint(self.options.folder, self.run, self.stage, iteration)

    def stepped(self, version: int) -> None:
        """A step was applied; write a checkpoint if one is due."""
        if self.options.folder is None or version % self.options.every:
            return
        if self._task is not None and not self._task.done():
            logger.warning("checkpoint of iteration %d is skipped: the one before is still being written", version)
            return
        self._task = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Let a checkpoint that is being written come to its end."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        assert self.options.folder is not None
        version, state = await self.compute.snapshot()
        try:
            await asyncio.to_thread(save_checkpoint, self.options.folder, self.run, self.stage, state, self.options.keep)
        except InputError as error:
            logger.error("%s; training goes on without this checkpoint", error)
            return
        self.written += 1
        logger.info("checkpoint of stage %d after %d iterations", self.stage, version)
