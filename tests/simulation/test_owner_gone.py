"""The only data peer is gone for good; a stranger takes its place with what others kept of its weights, and all follow it."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

OWNER, STRANGER = PeerId("data_0"), PeerId("data_9")


def after_the_owner(copied: int, absence_s: float, stage_peers: int = 2, owner_freezes: bool = False) -> SmallSwarm:
    """The stranger has started, with a copy that is `copied` iterations older than the weights of the stage peers."""
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=stage_peers))
    swarm.run(6)
    world = swarm.world
    (world.freeze if owner_freezes else world.kill)(OWNER)
    world.kernel.run(lambda: False, world.kernel.now + absence_s)
    stranger = swarm.new_peer(STRANGER)
    stranger.kept = [6 - copied]
    stranger.contributions = {6 - copied: world.peers[OWNER].contributions[6 - copied]}
    world.add(stranger)
    world.start(stranger, 6 - copied)
    return swarm


def goes_on(swarm: SmallSwarm) -> bool:
    kernel, peers = swarm.world.kernel, swarm.world.peers
    up = [peer for peer in peers if peer != OWNER]
    done = kernel.run(lambda: all(peers[p].machine.participant.version >= 8 for p in up), kernel.now + 60.0)
    swarm.invariants.check()
    return done


@pytest.mark.parametrize("stage_peers", [1, 2])
@pytest.mark.parametrize("absence_s", [0.0, 60.0])
@pytest.mark.parametrize("copied", [0, 1, 3])
def test_stage_peers_follow_a_stranger_back_to_the_copy_that_it_has(copied: int, absence_s: float, stage_peers: int) -> None:
    swarm = after_the_owner(copied, absence_s, stage_peers)
    assert goes_on(swarm), swarm.story()
    back = {int(str(r.fields["version"])) for _, r, _ in swarm.reported("going_back")}
    assert back == ({6 - copied} if copied else set())


@pytest.mark.parametrize("copied", [1, 3])
def test_an_owner_that_wakes_up_after_that_follows_the_stranger(copied: int) -> None:
    swarm = after_the_owner(copied, 60.0, owner_freezes=True)
    assert goes_on(swarm), swarm.story()
    swarm.world.thaw(OWNER)
    world = swarm.world
    reached = max(peer.machine.participant.version for peer in world.peers.values())
    everybody = world.peers.values()
    assert world.kernel.run(
        lambda: all(p.machine.participant.version > reached and p.machine.membership.serves for p in everybody),
        world.kernel.now + 120.0,
    ), swarm.story()
    assert {peer.machine.ctx.epoch for peer in everybody} == {1}
    swarm.invariants.check()
