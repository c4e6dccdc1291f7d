"""Training that diverges, in a real swarm: no step that is not finite is taken, nobody ends, everybody says why it pauses."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from experiments.support.live_swarm import SmallRun, Swarm

pytestmark = pytest.mark.live

MOST_SKIPPED = 2


def test_a_learning_rate_that_blows_up_pauses_the_run_with_finite_weights(tmp_path: Path) -> None:
    run = SmallRun(stages=1, steps=0, checkpoint_every=1, learning_rate=1e20, max_skipped_steps=MOST_SKIPPED)
    with Swarm(run, tmp_path) as swarm:
        swarm.wait_for("run_paused")
        peers = {name for name, report in swarm.heard if report["name"] == "online"}
        swarm.until(
            "everybody says why",
            lambda: {name for name, r in swarm.heard if r["name"] == "stall" and r["code"] == "paused"} == peers,
        )
        assert len(peers) == 3, "nobody has ended"
        assert any("learning_rate" in r["text"] for r in swarm.said("stall"))
        assert not swarm.said("tensor_refused") and not swarm.said("peer_barred"), "nobody is blamed"
        skipped = [r["iteration"] for r in swarm.said("stepped") if r["skipped"]]
        assert len(set(skipped)) == MOST_SKIPPED and len(skipped) == MOST_SKIPPED * len(peers)
    kept = sorted(tmp_path.rglob("*.safetensors"))
    assert kept
    for file in kept:
        assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()), file
