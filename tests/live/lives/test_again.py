"""A supervised peer that is killed in the middle of a run works again, with the p2pd and at the place of its life before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from experiments.support.friends.begin import begin, works
from experiments.support.friends.house import Friend, House
from tests.live.conftest import DEADLINE_S, ends

pytestmark = [pytest.mark.live, pytest.mark.slow]


def p2pd_of(friend: Friend) -> list[int]:
    """Of its supervisor's family."""
    return [process.pid for process in psutil.Process(friend.lives[-1].process.pid).children(True) if "p2pd" in process.name()]


def test_a_supervised_peer_is_killed_and_works_again(tmp_path: Path, runtime_dir: Path) -> None:
    with House(tmp_path) as house:
        owner, _ = begin(house, 1, 1)
        peer = house.start("supervised", "peer", "--run_id", "friends", "--supervise")
        house.until_so("it does microbatches", lambda: any(map(works, peer.screen)))
        before, seen = p2pd_of(peer), len(peer.screen)
        os.kill(int((peer.folder / "identity.pid").read_text().split()[0]), signal.SIGKILL)
        house.until_so("it does microbatches again", lambda: any(map(works, peer.screen[seen:])))
        assert len(before) == 1 and p2pd_of(peer) == before
        said = "\n".join(peer.screen[seen:])
        assert "it is started again now" in said and "catching up" in said
        assert house.leave(peer) == 0 and ends(before[0], DEADLINE_S), "it leaves as it would have before, and p2pd with it"
        house.until_more(owner, 2)
