"""Run files like those of public bug reports, each in a run of real peers as it was reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from experiments.support.friends.house import Friend, House

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        house.bootstrap()
        yield house


def run_file(folder: Path, run_id: str, learning_rate: float, steps: int) -> str:
    """Of the smallest run that there is, as a path."""
    path = folder / f"{run_id}.toml"
    path.write_text(
        f'run_id = "{run_id}"\nseed = 0\nstages = 1\nmodel = "tiny-llama"\ndataset = "stdlib"\nsequence_length = 32\n'
        "microbatch_size = 1\nmicrobatches_per_data_peer = 2\n"
        f"total_iterations = {steps}\noptimizer = {{ learning_rate = {learning_rate} }}\n"
    )
    return str(path)


def kept(friend: Friend) -> set[int]:
    """Versions of a stage on the friend's disk, of whichever stage is its own."""
    return {int(path.parent.name[5:]) for path in friend.disk.glob("stage_*/step_*/manifest.json")}


def test_a_run_that_ends_between_two_intervals_is_on_every_disk_before_anybody_exits(house: House, tmp_path: Path) -> None:
    data = house.start("data", "data", "--new_run", run_file(tmp_path, "last-step", 1e-3, 6))
    house.until(data, "^online in")
    peer = house.start("peer", "peer", "--run_id", "last-step")
    for friend in (data, peer):
        house.until(friend, "all stages have done, and keep, all 6 steps")
        assert friend.lives[-1].process.wait(60) == 0
        assert 6 in kept(friend)


def test_volunteers_with_unequal_intervals_go_on_after_everything_was_killed(house: House, tmp_path: Path) -> None:
    run = run_file(tmp_path, "intervals", 1e-3, 0)
    data = house.start("data", "data", "--new_run", run, "--checkpoint_every", "5")
    house.until(data, "^online in")
    peer = house.start("peer", "peer", "--run_id", "intervals", "--checkpoint_every", "4")
    for friend in (data, peer):
        house.until_step(friend, 17)
    house.power_cut()
    house.bootstrap()
    house.start("data", "data", "--run_id", "intervals", "--checkpoint_every", "5")
    house.start("peer", "peer", "--run_id", "intervals", "--checkpoint_every", "4")
    house.until_so("steps are done again", lambda: bool(data.steps and peer.steps))
    assert data.steps[0] == peer.steps[0] and data.steps[0][0] > 1, "from a version that both have"


def test_a_gradient_that_is_not_finite_is_said_and_no_disk_keeps_a_weight_that_is_not(house: House, tmp_path: Path) -> None:
    data = house.start("data", "data", "--new_run", run_file(tmp_path, "overflow", 1e20, 6))
    house.until(data, "^online in")
    peer = house.start("peer", "peer", "--run_id", "overflow")
    for friend in (data, peer):
        house.until(friend, "skipped: the gradient is not finite")
        house.until(friend, "all stages have done, and keep, all 6 steps")
        assert friend.lives[-1].process.wait(60) == 0
        assert not friend.said("Traceback")
        for file in friend.disk.rglob("*.safetensors"):
            assert all(t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()), file
