"""Run files of public bug reports, where they lie beside this checkout, each in a run of real peers as it was reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.support.friends_house import Friend, House

CASES = Path(__file__).parents[4] / "shared" / "cases"

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not CASES.is_dir(), reason="the inputs of public bug reports are not beside this checkout"),
]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        house.bootstrap()
        yield house


def kept(friend: Friend) -> set[int]:
    """Versions of a stage on the friend's disk, of whichever stage is its own."""
    return {int(path.parent.name[5:]) for path in friend.disk.glob("stage_*/step_*/manifest.json")}


def test_a_run_that_ends_between_two_intervals_is_on_every_disk_before_anybody_exits(house: House) -> None:
    data = house.start("data", "data", "--new_run", str(CASES / "no-last-checkpoint.run.toml"))
    house.until(data, "^online in")
    peer = house.start("peer", "peer", "--run_id", "last-step")
    for friend in (data, peer):
        house.until(friend, "all stages have done, and keep, all 6 steps")
        assert friend.lives[-1].process.wait(60) == 0
        assert 6 in kept(friend)


@pytest.mark.slow
def test_volunteers_with_unequal_intervals_go_on_after_everything_was_killed(house: House) -> None:
    run = str(CASES / "unequal-intervals.run.toml")
    data = house.start("data", "data", "--new_run", run, "--checkpoint_every", "5")
    house.until(data, "^online in")
    peer = house.start("peer", "peer", "--run_id", "intervals", "--checkpoint_every", "4")
    house.until_step(data, 17)
    house.until_step(peer, 17)
    house.power_cut()
    house.bootstrap()
    house.start("data", "data", "--run_id", "intervals", "--checkpoint_every", "5")
    house.start("peer", "peer", "--run_id", "intervals", "--checkpoint_every", "4")
    house.until_so("steps are done again", lambda: bool(data.steps and peer.steps))
    assert data.steps[0] == peer.steps[0] and data.steps[0][0] > 1, "from a version that both have"
