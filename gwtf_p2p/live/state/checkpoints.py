"""Checkpoints of a running peer: a snapshot when the protocol asks for one, written in its own thread, and read at the start.

It is written from the very tensors that are trained, one after the other, beside the forwards and backwards; only a step has
to wait until they are read, which is before they are on the disk (`compute/readings`). If a checkpoint is still being written
when the next is asked for, the next waits, and is skipped if the weights have gone on by then: training does not wait for a
disk. A disk that refuses is not asked at once again (`disk`).

The folder may hold checkpoints of other stages too: replicas (`replication`), or those of other peers of this machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.state.disk import Disk
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.view.replica_choice import copies_worth_keeping, worth_keeping
from gwtf_p2p.protocol.wire.commit_messages import Evaluations
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.state.checkpoint import (
    drop_checkpoints,
    drop_unfinished,
    intact_iterations,
    listed_iterations,
    load_checkpoint,
    save_checkpoint,
    written_bytes,
)
from gwtf_p2p.training.state.epochs import UNKNOWN, read_epochs, write_epochs
from gwtf_p2p.training.state.evaluations import evaluations_at, note_evaluations
from gwtf_p2p.training.state.stored import StoredState
from gwtf_p2p.training.state.tensors import STEP

logger = logging.getLogger(__name__)

Settled = Callable[[int, str], object]
"""Hears that a version is on the disk, or why it is not."""


class Checkpoints:
    """One peer's checkpoints of its stage. `kept` are their versions; `on_kept` hears of every change.

    `secured` is the newest version that every stage has twice, `copied` those of this stage that others have too, as far as
    this peer has heard (`replication`). `evaluations` are those that the newest own checkpoint tells of.
    """

    def __init__(self, options: CheckpointOptions, run: RunRecord, stage: Stage, compute: Compute) -> None:
        self.options, self.run, self.stage, self.compute = options, run, stage, compute
        self.written = 0
        self.kept: tuple[int, ...] = ()
        self.epoch = 0
        self.secured: int | None = None
        self.copied: frozenset[int] = frozenset()
        self.evaluations: Evaluations | None = None
        self.on_kept: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None
        self._noted: asyncio.Task[None] | None = None
        self._next: tuple[ef.Checkpoint, Settled] | None = None
        self.disk = Disk(options.folder, options.disk_bytes, stage) if options.folder is not None else None

    def look(self) -> None:
        """Read what is on the disk (it hashes: not in the event loop). Raises InputError if it is of another model."""
        folder = self.options.folder
        if folder is None:
            return
        with _told(folder):
            drop_unfinished(folder)
            self.kept, self.epoch = intact_iterations(folder, self.run, self.stage), read_epochs(folder).newest
            self.evaluations = evaluations_at(folder, self.stage, self.kept[-1]) if self.kept else None

    def kept_of(self, stage: Stage) -> tuple[int, ...]:
        """Versions of any stage that seem to be here; they are checked when they are read."""
        folder = self.options.folder
        if folder is None:
            return ()
        try:
            return listed_iterations(folder, self.run.model_hash, stage)
        except OSError as error:  # a disk that is gone for now: nothing can be read of it
            logger.warning("%s: %s", folder, error)
            return ()

    def read(self, stage: Stage, version: int) -> StoredState:
        """The state after so many iterations, which is read from the disk when it is asked for. Raises InputError when there is
        none."""
        if self.options.folder is None:
            raise InputError("--checkpoint_dir", "", f"none is given, and nobody else has iteration {version}")
        with _told(self.options.folder):
            return load_checkpoint(self.options.folder, self.run, stage, version)

    @property
    def best(self) -> int | None:
        """The version with the lowest evaluation loss, where the run keeps it, and that is known."""
        known = self.evaluations if self.run.evaluation.keep_best else None
        return known.best_version if known is not None and known.best_version > 0 else None

    def keep(
        self,
        stage: Stage,
        state: Mapping[str, Tensor],
        read: Callable[[], bool] = lambda: True,
        evaluations: Evaluations | None = None,
    ) -> None:
        """Write a state of any stage, and drop what is not needed any more (`view/replica_choice`). Raises InputError.

        `read` is called when all of it has been read; false if it has changed since it was begun (see `save_checkpoint`)."""
        folder, disk = self.options.folder, self.disk
        if folder is None or disk is None:
            return
        size = written_bytes(state)
        newest, secured, best = max(self.options.keep, self.run.keep_checkpoints), self.secured, self.best
        try:
            with _told(folder):
                disk.make_room(stage, int(state[STEP]), size, (secured, best))
                save_checkpoint(folder, self.run, stage, state, self.epoch, evaluations, read=read)
        except InputError:
            disk.refused(stage, size)
            raise
        disk.succeeded()
        try:
            if stage == self.stage:
                drop_checkpoints(folder, stage, lambda there: self._own_worth_keeping(there, newest, secured))
            else:
                drop_checkpoints(folder, stage, lambda there: copies_worth_keeping(there, newest, secured, best))
        except OSError as error:  # the new one is there all the same
            logger.warning("%s: older checkpoints stay: %s", folder, error)

    def _own_worth_keeping(self, there: Sequence[int], newest: int, secured: int | None) -> set[int]:
        """Own additional ones never push out those that all peers of the run have."""
        common = [version for version in there if version % self.run.checkpoint_every == 0]
        return {*common[-newest:], *worth_keeping(there, newest, secured, self.copied, self.best)}

    def disk_takes(self) -> bool:
        """Whether it makes sense to fetch what is to be kept."""
        return self.disk is not None and self.disk.takes((self.secured, self.best))

    def room_for(self, stage: Stage) -> int:
        """How many bytes a copy of this stage may take here (it looks at the disk: not in the event loop)."""
        return self.disk.room_for(stage, (self.secured, self.best)) if self.disk is not None else 0

    def refused(self, stage: Stage, size: int) -> None:
        """A copy of so many bytes does not fit, and is not asked for again at once."""
        if self.disk is not None:
            self.disk.refused(stage, size)

    def go_on_from(self, version: int, epoch: int, trusted: bool) -> None:
        """Weights of this version are in place, in this epoch. Raises InputError.

        `trusted`: an epoch that is new here began from this version, with what is on this disk; otherwise nobody knows.
        """
        folder = self.options.folder
        if folder is not None:
            with _told(folder):
                epochs = read_epochs(folder)
                if epoch > epochs.newest:
                    write_epochs(folder, epochs.going_on(epoch, version if trusted else UNKNOWN))
                self.kept = intact_iterations(folder, self.run, self.stage)
        if epoch != self.epoch:
            # Every stage has the version that the swarm has gone back to; what was secured later is gone.
            self.epoch, self.secured, self.copied = epoch, version, frozenset()

    def write(self, asked: ef.Checkpoint, settled: Settled) -> None:
        """Write the weights, which are of this version now; `settled` hears what came of it."""
        if self.options.folder is None:
            settled(asked.version, "no --checkpoint_dir")
        elif self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(asked, settled))
        else:
            if self._next is not None:
                self._skip(*self._next)
            self._next = asked, settled

    def noting(self, known: Callable[[], Evaluations | None], settled: Settled) -> Settled:
        """For the last weights, which are evaluated after their checkpoint was written: what came of that goes there, too."""

        def then(version: int, reason: str) -> None:
            self._noted = asyncio.get_running_loop().create_task(self._note(version, known()))
            self._noted.add_done_callback(lambda _: settled(version, reason))

        return then

    async def _note(self, version: int, evaluations: Evaluations | None) -> None:
        folder = self.options.folder
        if folder is None or evaluations is None:
            return
        try:
            await asyncio.to_thread(note_evaluations, folder, self.stage, version, evaluations)
        except InputError as error:
            logger.error("%s; the last evaluation is not kept", error)

    async def close(self) -> None:
        """Let a checkpoint that is being written, and one that waits for it, come to their end."""
        if self._task is not None:
            await self._task

    async def _write(self, asked: ef.Checkpoint, settled: Settled) -> None:
        """This one, and what was asked for meanwhile."""
        wanted: tuple[ef.Checkpoint, Settled] | None = (asked, settled)
        while wanted is not None:
            await self._write_one(*wanted)
            wanted, self._next = self._next, None

    async def _write_one(self, asked: ef.Checkpoint, settled: Settled) -> None:
        version = asked.version
        reading = await self.compute.read()
        if reading.version != version:
            reading.end()
            self._skip(asked, settled)
            return
        self.evaluations = asked.evaluations

        def keep() -> None:
            try:
                self.keep(self.stage, reading.state, reading.end, asked.evaluations)
            finally:
                reading.end()

        try:
            await asyncio.to_thread(keep)
            self.kept = await asyncio.to_thread(self.kept_of, self.stage)
        except InputError as error:
            logger.error("%s; training goes on without this checkpoint", error)
            settled(version, str(error))
            return
        self.written += 1
        logger.info("checkpoint of stage %d after %d iterations", self.stage, version)
        self.on_kept()
        settled(version, "")

    def _skip(self, asked: ef.Checkpoint, settled: Settled) -> None:
        version = asked.version
        logger.warning("checkpoint of iteration %d is skipped: the one before was still being written", version)
        settled(version, "the one before was still being written")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What a disk refuses (a file of another user, a mount that is gone) is one line. Raises InputError in its place."""
    try:
        yield
    except OSError as error:
        raise InputError(str(folder), "", error.strerror or str(error)) from error
