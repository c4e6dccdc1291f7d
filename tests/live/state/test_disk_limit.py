"""Disk space that ends: by a volunteer's `--disk_gb`, and really, on a file system of its own that is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import pytest
import torch
from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.disk import MOST_DISK_RETRY_S
from gwtf_p2p.live.state.donor import StateDonor
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.live.state.replication import Replication
from gwtf_p2p.live.state.store import StateStore
from gwtf_p2p.live.state.transfer import StateDownload
from gwtf_p2p.protocol.effects import Checkpoint
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.training.state.checkpoint import checkpoint_sizes
from tests.live.conftest import StartPeer
from tests.training.swarm import LLAMA, run_record

T = TypeVar("T")

RUN = run_record(LLAMA)
STATE_BYTES = 800_000


def state(version: int) -> dict[str, Tensor]:
    return {"weights/w": torch.ones(STATE_BYTES // 4), "step": torch.tensor(version)}


class Held:
    """What a peer computes with: weights of one version."""

    iterations = 10

    @property
    def optimizer(self) -> Held:
        return self

    @property
    def steps(self) -> int:
        return self.iterations

    async def in_thread(self, function: Callable[[], T]) -> T:
        return function()

    async def read(self) -> Reading:
        return Reading(self.iterations, state(self.iterations))


def checkpoints(folder: Path, stage: int, disk_bytes: int = 0) -> Checkpoints:
    return Checkpoints(CheckpointOptions(folder, disk_bytes=disk_bytes), RUN, Stage(stage), cast(Compute, Held()))


def test_checkpoints_and_copies_together_stay_within_the_limit(tmp_path: Path) -> None:
    limit = 4 * 870_000
    here = checkpoints(tmp_path, 1, limit)
    for version in range(10, 90, 10):
        here.keep(Stage(1), state(version))
        here.keep(Stage(2), state(version))
        assert sum(checkpoint_sizes(tmp_path).values()) <= limit
        assert here.kept_of(Stage(1))[-1] == here.kept_of(Stage(2))[-1] == version
    small = checkpoints(tmp_path / "small", 1, 2 * 870_000)
    small.keep(Stage(1), state(10))
    small.keep(Stage(1), state(20))
    small.secured = 10
    with pytest.raises(InputError, match=r"--disk_gb: 0.00174: stage 2 after 20 iterations takes 0.866 MB"):
        small.keep(Stage(2), state(20))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def saved(here: Checkpoints, version: int) -> str:
    """Why it is not on the disk."""
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    cast(Held, here.compute).iterations = version
    here.write(Checkpoint(version), lambda _, reason: heard.set_result(reason))
    return await heard


@pytest.mark.live
async def test_a_full_disk_fetches_nothing_keeps_nothing_half_and_goes_on_when_it_has_room(
    small_disk: Path, tmp_path: Path, start_peer: StartPeer
) -> None:
    """A neighbour's state used to be fetched every two seconds, for a disk that could not take it."""
    near, here = await start_peer(), await start_peer()
    donor = checkpoints(tmp_path / "donor", 2)
    donor.keep(Stage(2), state(10))
    serves = StateDonor(near.rpc, StateStore(donor.compute, donor), Stage(2))
    serves.may_have = lambda peer, stage, now: (None, True)
    own = checkpoints(small_disk, 1)
    replication = Replication(own, StateDownload(here.rpc), here.id)
    record = StageRecord(near.id, RunId("r"), Stage(2), PeerState.ONLINE, 1)
    mine = StageRecord(here.id, RunId("r"), Stage(1), PeerState.ONLINE, 1)
    view = NetworkView.of([record, mine], 2, 1)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_700_000))

    assert "No space left" in await saved(own, 10)
    assert not checkpoint_sizes(small_disk), "nothing half written"
    assert own.disk is not None
    now = own.disk.clock()
    own.disk.clock = lambda: now
    for _ in range(4 * 1800):  # four hours, at the rate at which copies are looked for
        now += 2
        if own.disk_takes():
            await replication.look(view, serves=True)
    assert serves.bytes_served == 0, "what cannot be kept is not fetched"

    ballast.unlink()
    now += MOST_DISK_RETRY_S
    await replication.look(view, serves=True)
    assert own.kept_of(Stage(2)) == (10,) and serves.bytes_served > 0, "packed, zeros take next to nothing"
    assert await saved(own, 20) == ""
    assert own.kept_of(Stage(1)) == (20,)
