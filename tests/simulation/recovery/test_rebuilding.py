"""A stage whose weights are on no disk and no copy: rebuilt where that was asked for, and otherwise told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from gwtf_p2p.protocol.commit.rebuilding import MOST_TRIES, REBUILD_AFTER_S
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.simulation.world.population import SimulatedPeer
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm
from tests.simulation.recovery.test_stories import everything, peers

Ended = Callable[[bool], None]
LOST_AT_S = 14.0
"""When versions 0 and 1 are on no disk any more."""


def losing(config: SmallConfig, *stages: int, at_s: float = LOST_AT_S, back_after_s: float = 1.0) -> SmallSwarm:
    """All peers of these stages die with their disks, when the first versions are nowhere any more; then they start again."""
    swarm = small_swarm(config)
    world, kernel = swarm.world, swarm.world.kernel
    lost = [PeerId(f"relay_{k}_{r}") for k in stages for r in range(config.stage_peers)]

    def lose() -> None:
        for name in lost:
            world.kill(name)
            world.peers[name].kept = []
            kernel.after(back_after_s, lambda name=name: swarm.faults.restart(name, fresh=True))  # type: ignore[misc]

    kernel.at(at_s, lose)
    return swarm


@pytest.mark.parametrize("data_peers", [1, 2])
@pytest.mark.parametrize(("stages", "lost"), [(3, (2,)), (3, (1,)), (3, (3,)), (4, (2, 3)), (2, (1,)), (5, (1, 3, 5))])
def test_a_stage_that_nobody_has_is_rebuilt_and_the_run_goes_on(stages: int, lost: tuple[int, ...], data_peers: int) -> None:
    config = SmallConfig(stages=stages, data_peers=data_peers, rebuilds=True)
    swarm = losing(config, *lost)
    assert swarm.run(iterations=22, deadline_s=200.0) == everything(swarm, 22)
    [(_, back, at_s)] = swarm.reported("going_back")
    assert at_s >= LOST_AT_S + REBUILD_AFTER_S, "whoever has it was waited for"
    version = back.fields["version"]
    told = {who: (r.fields["version"], tuple(r.fields["stages"])) for who, r, _ in swarm.reported("rebuilding")}
    assert set(told.values()) == {(version, lost)}
    rebuilders = {PeerId(f"relay_{k}_0") for k in lost}
    assert told.keys() == {p for p in swarm.world.peers if p in rebuilders or int(p.split("_")[1]) not in lost or p[0] == "d"}
    for d in range(data_peers):
        of = swarm.world.peers[PeerId(f"data_{d}")].contributions[22]
        assert of.rebuilt == tuple((Stage(k), version) for k in lost), "the ledger says so for good"


def test_without_being_asked_for_nothing_is_rebuilt_and_what_lacks_is_told_once() -> None:
    swarm = losing(SmallConfig(), 2)
    with pytest.raises(AssertionError, match="stuck"):
        swarm.run(iterations=22, deadline_s=60.0)
    [(_, said, _)] = swarm.reported("no_common_version")
    assert said.fields["stages_without"] == [2] and said.fields["rebuilt_in_s"] is None
    assert not swarm.reported("rebuilding") and not swarm.reported("going_back")


def test_who_comes_with_the_weights_before_is_gone_by() -> None:
    swarm = losing(SmallConfig(rebuilds=True), 2)
    world = swarm.world

    def found() -> None:
        """A friend finds the disk."""
        name = PeerId("relay_2_1")
        world.kill(name)
        world.peers[name].kept = [max(version for p in world.peers.values() for version in p.kept)]
        world.kernel.after(0.5, lambda: swarm.faults.restart(name, fresh=False))

    world.kernel.at(LOST_AT_S + REBUILD_AFTER_S / 2, found)
    assert swarm.run(iterations=22, deadline_s=200.0) == everything(swarm, 22)
    assert not swarm.reported("rebuilding")


def test_the_embedding_and_the_head_are_not_rebuilt() -> None:
    swarm = small_swarm(SmallConfig(rebuilds=True))
    world = swarm.world

    def lose() -> None:
        world.kill(PeerId("data_0"))
        world.peers[PeerId("data_0")].kept = []
        world.kernel.after(1.0, lambda: swarm.faults.restart(PeerId("data_0"), fresh=True))

    world.kernel.at(LOST_AT_S, lose)
    with pytest.raises(AssertionError, match="stuck"):
        swarm.run(iterations=22, deadline_s=100.0)
    assert not swarm.reported("rebuilding")


def test_what_cannot_be_rebuilt_is_given_up_after_some_tries() -> None:
    """Layers that are not alike, for one: the stage's peer says each time that it has not got them."""
    swarm = losing(SmallConfig(stage_peers=1, rebuilds=True), 2)
    weights = swarm.world.weights
    fetch = weights._fetch

    def fails(peer: SimulatedPeer, version: int, groups: Sequence[tuple[PeerId, ...]], size: int, ended: Ended) -> None:
        if size and peer.id == "relay_2_0":
            ended(False)
        else:
            fetch(peer, version, groups, size, ended)

    weights._fetch = fails  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="stuck"):
        swarm.run(iterations=22, deadline_s=400.0)
    assert len(swarm.reported("going_back")) == MOST_TRIES
    (_, said, _) = swarm.reported("no_common_version")[-1]
    assert said.fields["stages_without"] == [2] and said.fields["rebuilt_in_s"] is None


def test_the_one_that_rebuilds_is_lost_and_another_does_it() -> None:
    swarm = losing(SmallConfig(rebuilds=True), 2)
    world = swarm.world
    before = world.on_event
    assert before is not None
    killed: list[PeerId] = []

    def watch(peer: PeerId, event: object, now: float) -> None:
        before(peer, event, now)  # type: ignore[arg-type]
        if not killed and swarm.reported("rebuilding") and peer == "relay_2_0":
            killed.append(peer)
            world.kill(peer)

    world.on_event = watch
    assert swarm.run(iterations=22, deadline_s=300.0) == everything(swarm, 22)
    assert killed and len(swarm.reported("going_back")) == 2
    assert peers("relay_2_1")[0] in {who for who, _, _ in swarm.reported("rebuilding")}
