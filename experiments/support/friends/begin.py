"""How the friends' stories begin: a small run, its owner, and others who join."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from experiments.support.friends.house import Friend, House

RUN = {
    "seed": 0,
    "stages": 1,
    "model": "tiny-llama",
    "dataset": "stdlib",
    "sequence_length": 32,
    "microbatch_size": 1,
    "microbatches_per_data_peer": 2,
    "total_iterations": 100000,
    "checkpoint_every": 2,
}


def begin(
    house: House,
    stages: int = 1,
    peers: int = 2,
    owner_types: Sequence[str] = (),
    others_type: Sequence[str] = (),
    wait: bool = True,
    **changes: object,
) -> tuple[Friend, list[Friend]]:
    """The owner starts a run, and others join; returns them when (`wait`) the first steps are done."""
    run = {**RUN, "run_id": "friends", "stages": stages, "peers_per_stage": peers // stages, **changes}
    file = house.folder / "run.toml"
    file.write_text("".join(f"{name} = {in_toml(value)}\n" for name, value in run.items()))
    house.bootstrap()
    owner = house.start("owner", "data", "--new_run", str(file), *owner_types)
    house.until(owner, "^online in")
    others = [house.start(f"friend{i}", "peer", "--run_id", "friends", *others_type) for i in range(1, peers + 1)]
    for friend in others:
        house.until(friend, "^online in")
    if wait:
        for friend in (owner, *others):
            house.until_step(friend, 3)
    return owner, others


def in_toml(value: object) -> str:
    """A plain value or a flat table."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {in_toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)


def works(line: str) -> bool:
    """A step of which this friend has done something."""
    return line.startswith("step") and not re.search(r" 0 of \d+ microbatch(es)? ours", line)
