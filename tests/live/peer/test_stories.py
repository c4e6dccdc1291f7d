"""The most telling live stories (all: `experiments/live_stories.py`): lost peers, donors, stages, everybody; little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.friends import STORIES as FRIENDS
from experiments.live_stories import STORIES, Comparison
from experiments.support.friends.house import House

pytestmark = [pytest.mark.live, pytest.mark.slow]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    """The undisturbed runs are done once for all stories."""
    yield Comparison(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    "story",
    [
        "a_data_peer_is_killed",
        "a_donor_is_killed",
        "it_dies_again_before_its_moments_are_there",
        "a_stage_dies_with_its_disks",
        "everything_is_killed",
        "memory_is_short",
        "memory_is_full",
        "backward_of_mixture_of_experts",
        "backward_of_hybrid",
        "backward_of_sliding_window",
    ],
)
def test_a_story_holds(story: str, comparison: Comparison, tmp_path: Path) -> None:
    assert os.environ["XDG_RUNTIME_DIR"], "peers put their sockets where the test looks for leftovers"
    assert STORIES[story](comparison, tmp_path)


@pytest.mark.parametrize("story", ["stage_lost", "nan_step"])
def test_a_story_of_friends_holds(story: str, tmp_path: Path) -> None:
    """Told of their screens alone; all: `experiments/friends.py`."""
    with House(tmp_path) as house:
        assert FRIENDS[story](house)
