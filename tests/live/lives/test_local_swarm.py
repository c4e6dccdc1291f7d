"""Peers of one machine start in turn: a few at once, by its cores, however many there are to be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.local_swarm import LocalSwarm

pytestmark = pytest.mark.live

DEADLINE_S = 120.0
"""How long what must come may take on a busy machine. It is no measure of speed."""

NOWHERE = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture
def one_at_a_time(tmp_path: Path) -> Iterator[LocalSwarm]:
    swarm = LocalSwarm(tmp_path, at_once=1)
    yield swarm
    swarm.stop()


def start(swarm: LocalSwarm, *names: str, **how: Any) -> None:
    """Peers that need nobody else: bootstrap peers, if nothing else is said."""
    for name in names:
        options = P2POptions.on_this_machine(*how.get("at", ()))
        path, run_id = swarm.folder / f"{name}.key", "r" if "role" in how else None
        role = how.get("role", "bootstrap")
        swarm.start(name, PeerConfig(role, options, path, run_id=run_id, join_timeout_s=DEADLINE_S))


def hear(swarm: LocalSwarm, until: Callable[[Mapping[tuple[str, str], float]], bool]) -> dict[tuple[str, str], float]:
    """When each peer has said each report, by (peer, report)."""
    heard: dict[tuple[str, str], float] = {}
    end = time.monotonic() + DEADLINE_S
    while not until(heard):
        assert time.monotonic() < end, heard
        for name, report in swarm.poll(0.1):
            heard.setdefault((name, report["name"]), float(report.get("at", 0.0)))
    return heard


def test_nobody_begins_before_the_one_in_front_of_it_is_up(one_at_a_time: LocalSwarm) -> None:
    start(one_at_a_time, "a", "b", "c")
    assert (list(one_at_a_time.peers), one_at_a_time.queued) == (["a"], ("b", "c"))
    heard = hear(one_at_a_time, lambda heard: ("c", "started") in heard)
    ups = [heard[name, "started"] for name in "abc"]
    begins = [min(at for (name, _), at in heard.items() if name == each) for each in "abc"]
    assert ups[0] <= begins[1] and ups[1] <= begins[2]
    assert one_at_a_time.queued == ()


def test_who_waits_for_others_or_is_killed_holds_nobody_up(one_at_a_time: LocalSwarm) -> None:
    start(one_at_a_time, "lost", role="peer", at=(NOWHERE,))
    start(one_at_a_time, "killed", "never", "last")
    assert one_at_a_time.queued == ("killed", "never", "last")
    hear(one_at_a_time, lambda heard: ("lost", "waiting") in heard)
    assert list(one_at_a_time.peers) == ["lost", "killed"]
    one_at_a_time.kill("never")
    one_at_a_time.kill("killed")
    heard = hear(one_at_a_time, lambda heard: ("last", "started") in heard and ("killed", "exited") in heard)
    assert ("never", "exited") in heard and ("never", "started") not in heard and ("killed", "started") not in heard
    for name in ("never", "killed"):
        one_at_a_time.forget(name)
    start(one_at_a_time, "never")
    hear(one_at_a_time, lambda heard: ("never", "started") in heard)
