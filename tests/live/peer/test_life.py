"""The life of a run, with real peers: the power goes, whoever is there brings it back, and it ends on every disk."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.running_peers import running_peers
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.join import StartInterrupted
from gwtf_p2p.live.peer.lifecycle import run_peer
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.training.compute.config import ExecutorConfig

pytestmark = pytest.mark.live

DEADLINE_S = 240.0
"""How long what must come may take on a busy machine. It is no measure of speed."""

RUN = replace(SmallRun(stages=1, peers_per_stage=1, steps=8, microbatches=2, sequence_length=16).record(), checkpoint_every=2)


HEARD: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[LocalSwarm]:
    swarm = LocalSwarm(tmp_path)
    yield swarm
    swarm.stop()
    HEARD.clear()


def expect(swarm: LocalSwarm, name: str, report: str) -> Mapping[str, Any]:
    """The next report of this name; what others say meanwhile waits for its turn."""
    waiting = HEARD.setdefault(id(swarm), [])
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        for at, (who, heard) in enumerate(waiting):
            if who == name and heard["name"] in (report, "exited"):
                waiting[:] = [other for n, other in enumerate(waiting) if n > at or other[0] != name]
                assert heard["name"] == report, (swarm.folder / f"{name}.log").read_text()[-2000:]
                return heard
        waiting += swarm.poll(0.2)
    raise AssertionError(f"{name} did not say {report} in time, but {[heard for who, heard in waiting if who == name]}")


@pytest.fixture
def start(swarm: LocalSwarm) -> Callable[..., None]:
    """Starts one peer of the run, with a disk of its own."""

    def go(name: str, role: str, initial_peer: str = "", **how: Any) -> None:
        if name in swarm.peers:
            swarm.forget(name)
            heard = HEARD.setdefault(id(swarm), [])
            heard[:] = [said for said in heard if said[0] != name]  # the end of its former life
        config = PeerConfig(
            role=role,
            options=P2POptions.on_this_machine(initial_peer),
            identity_path=swarm.folder / f"{name}.key",
            run_id=RUN.run_id,
            executor=ExecutorConfig(),
            threads=1,
            checkpoints=CheckpointOptions(swarm.folder / f"disk_{name}"),
            join_timeout_s=DEADLINE_S,
        )
        swarm.start(name, replace(config, **how))

    return go


def kept(swarm: LocalSwarm, name: str, stage: int) -> list[int]:
    """Versions of a stage on a peer's disk."""
    found = (swarm.folder / f"disk_{name}" / f"stage_{stage:05d}").glob("step_*/manifest.json")
    return sorted(int(path.parent.name[5:]) for path in found)


def test_a_run_survives_a_power_cut_without_its_owner_and_ends_on_every_disk(
    swarm: LocalSwarm, start: Callable[..., None]
) -> None:
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("data", "data", there, new_run=RUN)
    start("peer", "peer", there)
    while expect(swarm, "peer", "stepped")["iteration"] < 4:
        pass
    for name in list(swarm.peers):
        swarm.kill(name)

    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("peer", "peer", there)
    assert expect(swarm, "peer", "brings_back")["run_id"] == RUN.run_id
    start("data", "data", there)  # the run is found by its id: its file is not needed again
    assert expect(swarm, "peer", "stepped")["iteration"] in (2, 3, 4), "it goes on from what the disks have"
    expect(swarm, "peer", "run_complete_everywhere")
    start("late", "peer", there)
    for name in ("data", "peer", "late"):
        expect(swarm, name, "run_over")
        swarm.peers[name].process.join(DEADLINE_S)
        assert swarm.peers[name].exit_code == 0
    assert kept(swarm, "peer", 1)[-1] == kept(swarm, "data", 0)[-1] == RUN.total_iterations


def test_a_run_that_is_not_there_is_waited_for_and_the_others_are_told(swarm: LocalSwarm, start: Callable[..., None]) -> None:
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("data", "data", there, new_run=RUN)
    expect(swarm, "data", "online")
    start("peer", "peer", there, run_id="another", join_timeout_s=7.0)
    waiting = expect(swarm, "peer", "waiting_for_run")
    assert (waiting["run_id"], waiting["runs"]) == ("another", [RUN.run_id])
    assert expect(swarm, "peer", "failed")["code"] == 3, "a supervisor tries again"


def test_a_signal_to_the_whole_group_is_a_leave_and_no_crash(swarm: LocalSwarm, start: Callable[..., None]) -> None:
    """As systemd and `timeout` send it. A peer of a local swarm leads a group of its own, as one started by hand does."""
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("data", "data", there, new_run=RUN, drain_s=DEADLINE_S)
    assert os.getpgid(expect(swarm, "data", "started")["p2pd"]) != swarm.peers["data"].pid
    expect(swarm, "data", "online")
    os.killpg(swarm.peers["data"].pid, signal.SIGTERM)
    expect(swarm, "data", "drained")
    swarm.peers["data"].process.join(DEADLINE_S)
    assert swarm.peers["data"].exit_code == 0


async def test_what_watches_a_peer_ends_with_its_p2pd(swarm: LocalSwarm, start: Callable[..., None], tmp_path: Path) -> None:
    """It starts anew, and would have one task more of each kind with every start. `gwtf pause` finds it meanwhile."""
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    stop, heard, left, pids = asyncio.Event(), dict[str, Any](), list[str](), dict[Path, int]()

    def report(said: dict[str, Any]) -> None:
        heard[said["name"]] = said
        if said["name"] == "online":
            pids.update(running_peers(None, tmp_path))
            os.kill(heard["started"]["p2pd"], signal.SIGKILL)
        elif said["name"] == "restarting":
            left.extend(str(task.get_coro()) for task in asyncio.all_tasks())
            stop.set()

    config = PeerConfig("data", P2POptions.on_this_machine(there), tmp_path / "own.key", new_run=RUN, threads=1)
    async with asyncio.timeout(DEADLINE_S):
        with suppress(StartInterrupted):
            await run_peer(config, report, stop)
    assert "restarting" in heard and pids == {tmp_path / "own.key": os.getpid()}
    assert not [name for name in left if "forbidden" in name or "has_ended" in name]


async def test_nobody_is_told_that_a_bootstrap_peer_pauses(tmp_path: Path) -> None:
    stop, found = asyncio.Event(), []

    def report(said: dict[str, Any]) -> None:
        found.append(running_peers(tmp_path / "own.key", tmp_path))
        stop.set()

    await run_peer(PeerConfig("bootstrap", P2POptions.on_this_machine(), tmp_path / "own.key"), report, stop)
    assert found and not any(found), "it never looks"
