"""A swarm of real peers that has nothing to do, forked from one warm parent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.support.live_swarm import SmallRun, Swarm

DATA_PEERS = 2
STAGES = 3
START_S = 900.0


@contextmanager
def idle_swarm(peers: int, settle_s: float, folder: Path) -> Iterator[Swarm]:
    """One that has done its only step, and has been quiet for `settle_s` since. Raises RunFailed, StoryFailed."""
    in_stage, left = divmod(peers - DATA_PEERS, STAGES)
    if left or in_stage < 1:
        raise ValueError(f"--peers {peers}: expected {DATA_PEERS} and a multiple of {STAGES}")
    small = SmallRun(stages=STAGES, peers_per_stage=in_stage, data_peers=DATA_PEERS, steps=1)
    with Swarm(small, folder, options={"start_s": START_S}) as swarm:
        swarm.until("everybody is online", lambda: swarm.run.online_s > 0, START_S)
        swarm.until("everybody has done the only step", lambda: swarm.run.finished(small.steps), START_S)
        wait(swarm, settle_s)
        yield swarm


def wait(swarm: Swarm, seconds: float) -> None:
    """The swarm goes on meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        swarm.poll()
