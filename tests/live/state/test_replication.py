"""Checkpoints on real disks, copied by peers that are slow: whichever stage is lost, the swarm can go back to its copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.options import CheckpointOptions
from gwtf_p2p.live.state.replication import Replication
from gwtf_p2p.live.state.transfer import UNBOUNDED, Pace, StateDownload
from gwtf_p2p.protocol.effects import Checkpoint
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.replica_choice import ASKED_IN_TURN, MOST_ASKED, keepers
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from tests.training.swarm import LLAMA, run_record

STAGES = 2
KEEP = 3
RUN = replace(run_record(LLAMA), checkpoint_every=2)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing crashes here, so nothing has to be on the platter."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class FakeCompute:
    """Its state after any number of iterations."""

    def __init__(self) -> None:
        self.iterations = 0

    async def read(self) -> Reading:
        names = ("weights/w", "first_moment/w", "second_moment/w")
        state = {name: torch.full((4,), float(self.iterations)) for name in names}
        return Reading(self.iterations, {**state, "step": torch.tensor(self.iterations)})


@dataclass
class Swarm:
    """One peer per stage, each with its own disk; while a copy is fetched, `per_copy` checkpoints are written."""

    folder: Path
    per_copy: int
    checkpoints: dict[PeerId, Checkpoints] = field(default_factory=dict)
    replications: dict[PeerId, Replication] = field(default_factory=dict)
    iterations: int = 0

    def __post_init__(self) -> None:
        for k in range(STAGES + 1):
            peer = PeerId(f"p{k}")
            options = CheckpointOptions(self.folder / peer, keep=KEEP)
            checkpoints = Checkpoints(options, RUN, Stage(k), cast(Compute, FakeCompute()))
            self.checkpoints[peer] = checkpoints
            self.replications[peer] = Replication(checkpoints, SlowDownload(self), peer)

    async def step(self, checkpoints: int) -> None:
        for _ in range(checkpoints):
            self.iterations += 2
            for kept in self.checkpoints.values():
                cast(FakeCompute, kept.compute).iterations = self.iterations
                kept.write(Checkpoint(self.iterations), lambda version, reason: None)
                await kept.close()

    def view(self) -> NetworkView:
        records = [
            StageRecord(
                peer,
                RunId("r"),
                kept.stage,
                PeerState.ONLINE,
                1,
                epoch=kept.epoch,
                copied=self.replications[peer].copied,
            )
            for peer, kept in self.checkpoints.items()
        ]
        return NetworkView.of(records, STAGES, 1)

    async def look(self) -> None:
        view = self.view()
        for replication in self.replications.values():
            await replication.look(view, serves=True)

    def versions_without(self, lost: PeerId) -> set[int]:
        """That all stages have when one machine is gone: the lost stage's are copies."""
        left = {peer: kept for peer, kept in self.checkpoints.items() if peer != lost}
        of_lost = {v for kept in left.values() for v in kept.kept_of(self.checkpoints[lost].stage)}
        return of_lost.intersection(*(kept.kept_of(kept.stage) for kept in left.values()))


class SlowDownload(StateDownload):
    """From the other disks, and slow: what was asked for is read at once, and others train on until it is here."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    async def listed(self, peer: PeerId, stage: Stage) -> tuple[int, tuple[int, ...]]:
        kept = self._swarm.checkpoints[peer]
        return kept.epoch, kept.kept_of(stage)

    async def fetch(
        self, version: int, donors: Sequence[PeerId], stage: Stage | None = None, pace: Pace = UNBOUNDED
    ) -> dict[str, Tensor]:
        assert stage is not None
        state = self._swarm.checkpoints[donors[0]].read(stage, version)
        await self._swarm.step(self._swarm.per_copy)
        return state


async def test_a_stage_can_be_lost_at_any_time_after_its_first_copy(tmp_path: Path) -> None:
    """More checkpoints are written while one copy is made than the newest that are kept."""
    swarm = Swarm(tmp_path, per_copy=KEEP + 2)
    await swarm.step(1)
    reached = []
    for _ in range(8):
        await swarm.look()
        await swarm.step(1)
        common = {peer: swarm.versions_without(peer) for peer in swarm.checkpoints}
        assert all(common.values()), f"a lost stage is lost for good: {common}"
        reached.append(min(max(versions) for versions in common.values()))
        for kept in swarm.checkpoints.values():
            for k in range(STAGES + 1):
                assert len(kept.kept_of(Stage(k))) <= 2 * KEEP + 3, "disks do not fill"
    assert reached == sorted(reached), "it never has to go back further than before"
    assert reached[-1] > swarm.iterations // 2


async def test_in_a_large_stage_few_are_asked_at_a_time_and_what_they_said_stands_until_they_are_asked_again(
    tmp_path: Path,
) -> None:
    """Of 20 peers nearby one is asked each time, since it is to keep copies; one that has gone has them no more."""
    swarm = Swarm(tmp_path, per_copy=0)
    await swarm.step(1)
    asked: list[tuple[PeerId, Stage]] = []

    class Many(SlowDownload):
        async def listed(self, peer: PeerId, stage: Stage) -> tuple[int, tuple[int, ...]]:
            asked.append((peer, stage))
            if peer in silent:
                raise RemoteProtocolError("it does not answer")
            return 0, (2,) if peer in having and stage == 2 else ()

    many = [StageRecord(PeerId(f"near{n:02d}"), RunId("r"), Stage(1), PeerState.ONLINE, 1) for n in range(20)]
    own = StageRecord(PeerId("own"), RunId("r"), Stage(2), PeerState.ONLINE, 1)
    view = NetworkView.of([own, *many], STAGES, 1)
    [keeper] = keepers(view, Stage(2), 1)
    candidates = [record.peer for record in many if record.peer != keeper][: MOST_ASKED - 1]
    having, silent = {candidates[-1]}, set[PeerId]()
    options = CheckpointOptions(tmp_path / "own", keep=KEEP, copies=1)
    replication = Replication(Checkpoints(options, RUN, Stage(2), cast(Compute, FakeCompute())), Many(swarm), own.peer)

    async def look() -> list[PeerId]:
        asked.clear()
        await replication.look(view, serves=True)
        return [peer for peer, stage in asked if stage == 2]

    rounds = [await look() for _ in range(-(-len(candidates) // ASKED_IN_TURN))]
    assert all(keeper in each and len(each) <= 1 + ASKED_IN_TURN for each in rounds)
    assert {*candidates} <= {peer for each in rounds for peer in each}, "each has its turn"
    assert replication.remote == {2: (candidates[-1],)}
    while candidates[-1] in await look():
        pass
    assert replication.remote == {2: (candidates[-1],)}, "it was not asked, and still counts"
    silent = having
    while candidates[-1] not in await look():
        pass
    assert replication.remote == {}, "it does not answer"
    silent = set()
    while candidates[-1] not in await look():
        pass
    assert replication.remote == {2: (candidates[-1],)}
    view = view.without([candidates[-1]])
    await look()
    assert replication.remote == {}, "it is gone"


async def test_after_going_back_the_version_gone_back_to_is_kept(tmp_path: Path) -> None:
    """What is done again does not displace it, and what was done before does not displace what is done again."""
    swarm = Swarm(tmp_path, per_copy=0)
    await swarm.step(8)
    swarm.iterations = 2
    for kept in swarm.checkpoints.values():
        kept.go_on_from(2, epoch=1, trusted=True)
    await swarm.step(2 * KEEP)
    for kept in swarm.checkpoints.values():
        assert kept.kept == kept.kept_of(kept.stage) == (2, 8, 10, 12, 14)


async def test_a_newcomer_without_a_disk_counts_on_the_copies_of_the_epoch_that_the_run_is_in(tmp_path: Path) -> None:
    """It has not been there when the run went back; what is of an epoch that it leaves does not count any more."""
    swarm = Swarm(tmp_path, per_copy=0)
    await swarm.step(3)
    for kept in swarm.checkpoints.values():
        kept.go_on_from(2, epoch=1, trusted=True)
    swarm.iterations = 2
    await swarm.step(1)
    await swarm.look()
    left = swarm.view().without([PeerId("p2")])
    options = CheckpointOptions(tmp_path / "newcomer", keep=KEEP)
    checkpoints = Checkpoints(options, RUN, Stage(2), cast(Compute, FakeCompute()))
    newcomer = Replication(checkpoints, SlowDownload(swarm), PeerId("newcomer"))
    assert await newcomer.adopt(left) == 1
    copied = newcomer.kept
    assert copied, "there are copies of its stage"
    await newcomer.look(left, serves=False)
    assert newcomer.kept == copied
    checkpoints.go_on_from(2, epoch=2, trusted=False)
    assert newcomer.kept == (), "nobody has said yet what of it still holds"
