"""The end of a run is an event of all its peers: the last weights are written in every stage before anybody leaves."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

ENDS = SmallConfig(stages=2, stage_peers=2, data_peers=2, iterations=7, checkpoint_every=5, ends=True)


def until_all_have_left(swarm: SmallSwarm, deadline_s: float = 300.0) -> None:
    assert swarm.world.kernel.run(lambda: not any(p.alive for p in swarm.world.peers.values()), deadline_s), swarm.story()


def written(swarm: SmallSwarm) -> list[tuple[PeerId, int]]:
    """Who asked for which checkpoint, from now on; in the order of asking."""
    found: list[tuple[PeerId, int]] = []
    carry_out = swarm.world.population.carry_out

    def note(peer: object, effect: ef.Effect) -> None:
        if isinstance(effect, ef.Checkpoint):
            found.append((peer.id, effect.version))  # type: ignore[attr-defined]
        carry_out(peer, effect)  # type: ignore[arg-type]

    swarm.world.population.carry_out = note
    return found


def test_every_peer_writes_the_interval_and_the_last_iteration_and_then_all_leave() -> None:
    swarm = small_swarm(ENDS)
    checkpoints = written(swarm)
    until_all_have_left(swarm)
    everybody = sorted(swarm.world.peers)
    assert sorted(checkpoints) == [(peer, version) for peer in everybody for version in (5, 7)]
    assert sorted(peer for peer, _, _ in swarm.reported("run_over")) == everybody
    assert not swarm.reported("peer_lost"), "nobody is missed"
    complete = max(at for _, _, at in swarm.reported("run_complete"))
    assert min(at for _, _, at in swarm.reported("run_over")) > complete, "nobody leaves before all have it"


def test_a_peer_that_is_to_stay_goes_on_serving() -> None:
    swarm = small_swarm(SmallConfig(stages=1, iterations=3, checkpoint_every=2))
    assert not swarm.world.kernel.run(lambda: any(not p.alive for p in swarm.world.peers.values()), 60.0)
    assert len(swarm.reported("run_complete_everywhere")) == len(swarm.world.peers) == 3


def test_nobody_leaves_while_a_stage_lacks_the_last_iteration() -> None:
    """Both peers of stage 1 die before they have written it; the others wait, and say for what, until they are back."""
    swarm = small_swarm(ENDS)
    stage_1 = [PeerId("relay_1_0"), PeerId("relay_1_1")]
    stepped = swarm.world.on_event

    def dies_at_the_end(peer: PeerId, event: ev.Event, now: float) -> None:
        if peer in stage_1 and isinstance(event, ev.Stepped) and event.iteration == 6:
            swarm.world.kill(peer)
        elif stepped is not None:
            stepped(peer, event, now)

    swarm.world.on_event = dies_at_the_end
    assert not swarm.world.kernel.run(lambda: any(not p.alive for p in swarm.world.peers.values() if p.id not in stage_1), 60.0)
    assert {tuple(r.fields["stages"]) for _, r, _ in swarm.reported("end_waits")} >= {(1,)}  # type: ignore[arg-type]
    swarm.world.on_event = stepped
    for peer in stage_1:
        swarm.world.peers[peer].kept = [5]  # the interval's is all that their disks have
        swarm.faults.restart(peer, fresh=False)
    until_all_have_left(swarm)
    assert swarm.reported("going_back"), "the last two iterations are done again"


@pytest.mark.parametrize("stays", [False, True])
def test_a_newcomer_is_told_that_the_run_is_over(stays: bool) -> None:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, iterations=3, checkpoint_every=2, ends=True))
    late = PeerId("relay_1_1")
    swarm.world.kill(late)
    assert swarm.world.kernel.run(lambda: bool(swarm.reported("run_complete_everywhere")), 120.0), swarm.story()
    if not stays:
        assert swarm.world.kernel.run(lambda: not any(p.alive for p in swarm.world.peers.values()), 120.0), swarm.story()
    swarm.faults.restart(late, fresh=True)
    assert swarm.world.kernel.run(lambda: not swarm.world.peers[late].alive, 60.0), swarm.story()
    assert [peer for peer, _, _ in swarm.reported("run_over")].count(late) == 1


def test_who_leaves_writes_the_weights_that_it_leaves_with() -> None:
    swarm = small_swarm(SmallConfig(stages=1, stage_peers=2, checkpoint_every=1000))
    checkpoints, leaver = written(swarm), PeerId("relay_1_0")
    swarm.run(3)
    swarm.faults.fire(Fault("drain", leaver, at_s=0.0))
    assert swarm.world.kernel.run(lambda: not swarm.world.peers[leaver].alive, 60.0), swarm.story()
    newest = swarm.world.peers[leaver].machine.participant.weights
    assert newest >= 3 and checkpoints[-1] == (leaver, newest)


def test_a_peer_that_cannot_write_the_last_weights_leaves_with_the_reason() -> None:
    """Its disk is full. The others leave as ever, and nobody waits for what will not come."""
    swarm = small_swarm(ENDS)
    full, carry_out = PeerId("relay_1_0"), swarm.world.population.carry_out
    machines = {peer: swarm.world.peers[peer].machine for peer in swarm.world.peers}

    def refuse(peer: object, effect: ef.Effect) -> None:
        if isinstance(effect, ef.Checkpoint) and peer.id == full:  # type: ignore[attr-defined]
            told = ev.Checkpointed(effect.version, "No space left on device")
            swarm.world.kernel.after(0.0, lambda: swarm.world.population.feed(peer, told))  # type: ignore[arg-type]
        else:
            carry_out(peer, effect)  # type: ignore[arg-type]

    swarm.world.population.carry_out = refuse
    until_all_have_left(swarm)
    why = {peer: machine.ending.unkept for peer, machine in machines.items()}
    assert why == {peer: "No space left on device" if peer == full else "" for peer in machines}
