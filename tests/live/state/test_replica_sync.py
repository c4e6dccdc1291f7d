"""A real swarm whose copies of a stage are averaged every three steps: one is killed in between, another one comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun, Swarm, weights

pytestmark = [pytest.mark.live, pytest.mark.slow]

EVERY, STEPS = 3, 36
"""So many that a newcomer is there before the last."""


def test_a_copy_is_killed_and_another_one_comes(tmp_path: Path) -> None:
    run = SmallRun(
        stages=1,
        data_peers=2,
        steps=STEPS,
        checkpoint_every=EVERY,
        replica_sync=EVERY,
        microbatch_size=4,
        sequence_length=64,
    )
    with Swarm(run, tmp_path) as swarm:
        swarm.until_step(EVERY + 1)
        swarm.run.kill("stage1.1")
        newcomer = swarm.run.add_stage_peer(1)
        lost = swarm.wait_for("peer_lost")
        there = "the newcomer is online, or the run is over"
        swarm.until(there, lambda: bool(swarm.said("online", newcomer)) or swarm.run.finished(STEPS))
        assert swarm.said("online", newcomer), "it came too late for this test"
        swarm.to_the_end()
        assert lost.get("steps_lost", 0) < EVERY
        assert not swarm.said("state_differs") and not swarm.said("peer_barred")
        assert swarm.said("run")[0]["replica_sync"] == EVERY
    disks = tmp_path / "checkpoints"
    for stage in range(2):
        weights(disks, stage, STEPS)  # of every peer that has them, equal to the bit
    written = {int(file.parent.name.removeprefix("step_")) for file in disks.rglob("model.safetensors")}
    assert written <= set(range(0, STEPS + 1, EVERY)) and len(written) > 1
    assert len(list(disks.glob(f"stage1.*/stage_00001/step_{STEPS:08d}/model.safetensors"))) == 2, "two copies are compared"
