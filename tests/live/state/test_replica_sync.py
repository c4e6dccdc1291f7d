"""A real swarm whose copies of a stage are averaged every three steps: one is killed in between, another one comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.support.live_swarm import SmallRun, Swarm, weights

pytestmark = [pytest.mark.live, pytest.mark.slow]

EVERY = 3


def test_a_copy_is_killed_and_another_one_comes(tmp_path: Path) -> None:
    run = SmallRun(stages=1, peers_per_stage=2, data_peers=2, steps=4 * EVERY, checkpoint_every=EVERY, replica_sync=EVERY)
    with Swarm(run, tmp_path) as swarm:
        swarm.until_step(EVERY + 1)
        swarm.run.kill("stage1.1")
        lost = swarm.wait_for("peer_lost")
        newcomer = swarm.run.add_stage_peer(1)
        swarm.wait_for("online", newcomer)
        swarm.to_the_end()
        assert lost.get("steps_lost", 0) < EVERY
        assert not swarm.said("state_differs") and not swarm.said("peer_barred")
        assert swarm.said("run")[0]["replica_sync"] == EVERY
    disks = tmp_path / "checkpoints"
    for stage in range(2):
        weights(disks, stage, 4 * EVERY)  # of every peer that has them, equal to the bit
    written = {int(file.parent.name.removeprefix("step_")) for file in disks.rglob("model.safetensors")}
    assert written <= set(range(0, 4 * EVERY + 1, EVERY)) and len(written) > 1
    assert len(list(disks.glob(f"stage1.*/stage_00001/step_{4 * EVERY:08d}/model.safetensors"))) == 2, "two copies are compared"
