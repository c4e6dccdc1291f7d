"""Checkpoints of a running peer: a snapshot after every n-th step, written in a thread of its own, and read at the start.

The compute thread only copies the state; hashing and writing happen beside it, one checkpoint at a time. If a checkpoint is
still being written when the next is due, the next is skipped: training does not wait for a disk.

The folder may hold checkpoints of other stages too: replicas (`replication`), or those of other peers of this machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.view.replica_choice import copies_worth_keeping, worth_keeping
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.state.checkpoint import (
    drop_checkpoints,
    intact_iterations,
    listed_iterations,
    load_checkpoint,
    save_checkpoint,
)
from gwtf_p2p.training.state.epochs import UNKNOWN, read_epochs, write_epochs

logger = logging.getLogger(__name__)


class Checkpoints:
    """One peer's checkpoints of its stage. `kept` are their versions; `on_kept` hears of every change.

    `secured` is the newest version that every stage has twice, `copied` those of this stage that others have too, as far as
    this peer has heard (`replication`).
    """

    def __init__(self, options: CheckpointOptions, run: RunRecord, stage: Stage, compute: Compute) -> None:
        self.options, self.run, self.stage, self.compute = options, run, stage, compute
        self.written = 0
        self.kept: tuple[int, ...] = ()
        self.epoch = 0
        self.secured: int | None = None
        self.copied: frozenset[int] = frozenset()
        self.on_kept: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Read what is on the disk (it hashes: not in the event loop). Raises InputError if it is of another model."""
        folder = self.options.folder
        if folder is not None:
            self.kept, self.epoch = intact_iterations(folder, self.run, self.stage), read_epochs(folder).newest

    def kept_of(self, stage: Stage) -> tuple[int, ...]:
        """Versions of any stage that seem to be here; they are checked when they are read."""
        folder = self.options.folder
        return listed_iterations(folder, self.run.model_hash, stage) if folder is not None else ()

    def read(self, stage: Stage, version: int) -> dict[str, Tensor]:
        """The state after so many iterations. Raises InputError when there is none."""
        if self.options.folder is None:
            raise InputError("--checkpoint_dir", "", f"none is given, and nobody else has iteration {version}")
        return load_checkpoint(self.options.folder, self.run, stage, version)

    def keep(self, stage: Stage, state: dict[str, Tensor]) -> None:
        """Write a state of any stage, and drop what is not needed any more (`replicas`). Raises InputError."""
        folder = self.options.folder
        if folder is not None:
            save_checkpoint(folder, self.run, stage, state, self.epoch)
            newest, secured = self.options.keep, self.secured
            if stage == self.stage:
                drop_checkpoints(folder, stage, lambda there: worth_keeping(there, newest, secured, self.copied))
            else:
                drop_checkpoints(folder, stage, lambda there: copies_worth_keeping(there, newest, secured))

    def go_on_from(self, version: int, epoch: int, trusted: bool) -> None:
        """Weights of this version are in place, in this epoch. Raises InputError.

        `trusted`: an epoch that is new here began from this version, with what is on this disk; otherwise nobody knows.
        """
        folder = self.options.folder
        if folder is not None:
            epochs = read_epochs(folder)
            if epoch > epochs.newest:
                write_epochs(folder, epochs.going_on(epoch, version if trusted else UNKNOWN))
            self.kept = intact_iterations(folder, self.run, self.stage)
        if epoch != self.epoch:
            # Every stage has the version that the swarm has gone back to; what was secured later is gone.
            self.epoch, self.secured, self.copied = epoch, version, frozenset()

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
        version, state = await self.compute.snapshot()
        try:
            await asyncio.to_thread(self.keep, self.stage, state)
            self.kept = await asyncio.to_thread(self.kept_of, self.stage)
        except InputError as error:
            logger.error("%s; training goes on without this checkpoint", error)
            return
        self.written += 1
        logger.info("checkpoint of stage %d after %d iterations", self.stage, version)
        self.on_kept()
