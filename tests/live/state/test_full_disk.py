"""A disk that is full: nothing half written stays on it, nothing is fetched for it, and it is tried again when it has room."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state import disk as module
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.disk import DISK_RETRY_S
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.protocol.effects import Checkpoint
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.training.state import checkpoint as files
from gwtf_p2p.training.state.checkpoint import drop_unfinished, save_checkpoint
from tests.training.swarm import LLAMA, run_record

RUN = run_record(LLAMA)


class Free(NamedTuple):
    free: int


class OneState:
    """Weights of one version."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def read(self) -> Reading:
        return Reading(self.version, {"weights/w": torch.ones(1000), "step": torch.tensor(self.version)})


class Disk:
    """A full disk and a clock, until it is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.now, self.tried = True, 0.0, 0
        real = files.write_tensors

        def write_tensors(path: Path, tensors: Any) -> None:
            self.tried += 1
            if self.full and "optimizer" in path.name:  # the weights have still fitted
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, tensors)

        monkeypatch.setattr(files, "write_tensors", write_tensors)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: Free(100 if self.full else 10**9))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def write(checkpoints: Checkpoints, version: int) -> str:
    """What came of it."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    cast(OneState, checkpoints.compute).version = version
    checkpoints.write(Checkpoint(version), lambda _, reason: heard.set_result(reason))
    return await heard


async def test_a_failed_write_is_undone_and_the_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    checkpoints = Checkpoints(CheckpointOptions(tmp_path), RUN, Stage(1), cast(Compute, OneState(0)))
    assert checkpoints.disk_takes()
    assert "No space left" in await write(checkpoints, 10)
    assert not files_in(tmp_path), "nothing of it stays"

    assert not checkpoints.disk_takes(), "not at once again"
    disk.now = DISK_RETRY_S + 1
    assert not checkpoints.disk_takes(), "nor before it has room for what it has refused"
    disk.full = False
    assert checkpoints.disk_takes()
    assert await write(checkpoints, 20) == ""
    assert checkpoints.kept == (20,) and checkpoints.disk_takes()


async def test_pauses_grow_while_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota shows as free space that cannot be used: only the pauses keep the peer from fetching all day."""
    disk = Disk(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Free(10**9))
    checkpoints = Checkpoints(CheckpointOptions(tmp_path), RUN, Stage(1), cast(Compute, OneState(0)))
    fetches = 0
    for second in range(0, 86_400, 2):  # a day, at the rate at which copies are looked for
        disk.now = float(second)
        if checkpoints.disk_takes():
            fetches += 1
            assert await write(checkpoints, 10)
    assert fetches < 60


@pytest.mark.parametrize("reason", [errno.EACCES, errno.ESTALE])
async def test_a_disk_that_refuses_anything_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """Another user's file in a folder that is shared, a mount that is gone: of writing, of dropping and of looking."""

    def refuse(*args: Any, **how: Any) -> Any:
        raise OSError(reason, os.strerror(reason))

    checkpoints = Checkpoints(CheckpointOptions(tmp_path, keep=1), RUN, Stage(1), cast(Compute, OneState(0)))
    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "unlink", refuse)
        for version in range(10, 60, 10):
            assert await write(checkpoints, version) == "", "what is older cannot go, this one has come"
    assert checkpoints.kept == (10, 20, 30, 40, 50)
    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "mkdir", refuse)
        assert os.strerror(reason) in await write(checkpoints, 60)
        assert not checkpoints.disk_takes()
        with pytest.raises(InputError, match=os.strerror(reason)):
            checkpoints.keep(Stage(2), {"weights/w": torch.ones(8), "step": torch.tensor(60)})
    with monkeypatch.context() as refusing:
        refusing.setattr(shutil, "disk_usage", refuse)
        assert checkpoints.room_for(Stage(2)) == 0
    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "is_file", refuse)
        assert checkpoints.kept_of(Stage(1)) == ()
        with pytest.raises(InputError, match=os.strerror(reason)):
            checkpoints.go_on_from(10, 0, trusted=True)
    assert checkpoints.kept_of(Stage(1))


def test_what_a_writer_that_is_gone_left_half_written_is_removed(tmp_path: Path) -> None:
    state = {"weights/w": torch.ones(8), "step": torch.tensor(5)}
    folder = save_checkpoint(tmp_path, RUN, 1, state)
    gone, running = folder / "model.safetensors.999999999.writing", folder / f"model.safetensors.{os.getpid()}.writing"
    cut = tmp_path / "stage_00001" / "step_00000010" / "model.safetensors.999999999.writing"
    cut.parent.mkdir()
    for path in (gone, running, cut):
        path.write_bytes(b"half")
    drop_unfinished(tmp_path)
    assert not gone.exists() and not cut.parent.exists()
    assert running.exists(), "another peer of this machine is writing it"


@pytest.mark.parametrize("epoch", [None, "two", [1]])
async def test_a_damaged_manifest_is_passed_over_where_checkpoints_are_listed_and_dropped(
    tmp_path: Path, epoch: object
) -> None:
    checkpoints = Checkpoints(CheckpointOptions(tmp_path, keep=1), RUN, Stage(1), cast(Compute, OneState(0)))
    folder = save_checkpoint(tmp_path, RUN, 1, {"weights/w": torch.ones(8), "step": torch.tensor(5)})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "epoch": epoch}))
    assert await write(checkpoints, 10) == ""
    checkpoints.look()
    assert checkpoints.kept == checkpoints.kept_of(Stage(1)) == (10,)
