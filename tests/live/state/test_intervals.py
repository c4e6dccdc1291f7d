"""The run's interval decides which versions all stages have, whatever each volunteer writes and keeps besides."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
import torch

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.peer.assembly import run_life
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.protocol.effects import Checkpoint
from gwtf_p2p.protocol.ids import Stage
from tests.training.swarm import LLAMA, run_record

RUN = run_record(LLAMA)


class OneState:
    """Weights of one version."""

    version = 0

    async def read(self) -> Reading:
        return Reading(self.version, {"weights/w": torch.ones(4), "step": torch.tensor(self.version)})


async def kept_after(steps: int, options: CheckpointOptions, stage: int) -> set[int]:
    """Versions on the disk of a peer that has done so many steps."""
    compute, life = OneState(), run_life(PeerConfig("peer", checkpoints=options), RUN)
    checkpoints = Checkpoints(options, RUN, Stage(stage), cast(Compute, compute))
    for compute.version in range(1, steps + 1):
        if life.is_due(compute.version):
            written = asyncio.Event()
            checkpoints.write(Checkpoint(compute.version), lambda version, reason, done=written: done.set())
            await written.wait()
    return set(checkpoints.kept)


@pytest.mark.parametrize("steps", [16, 19, 43])
async def test_unequal_intervals_of_volunteers_leave_a_common_version(steps: int, tmp_path: Path) -> None:
    disks = [
        await kept_after(steps, CheckpointOptions(tmp_path / f"{every}", every, keep), stage)
        for stage, (every, keep) in enumerate(((5, 1), (4, 3), (0, 0)))
    ]
    newest = steps - steps % RUN.checkpoint_every
    assert newest in set.intersection(*disks), disks
    assert max(disks[1]) == steps - steps % 4, "what is written besides is kept too"
