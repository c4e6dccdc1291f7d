"""The end of a run is an event of all its peers: the last weights are written in every stage before anybody leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.membership.ending import REMEMBERED_S
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Evaluated, Evaluations
from gwtf_p2p.protocol.wire.records import Completion
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

LOSSES = (3.0, 2.5, 2.0, 2.4, math.nan, 2.2, 1.0, 0.5)
"""Of versions 0 to 7: with a patience of 3 the evaluation of version 5 is the last one, and 6 the last version."""

WAITS = SmallConfig(
    stages=2,
    stage_peers=2,
    data_peers=2,
    checkpoint_every=1,
    ends=True,
    patience=3,
    losses=lambda version: LOSSES[min(version, 7)],
)
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


@pytest.mark.parametrize("at_s", [2.1, 2.4, 3.0, 3.75, 4.5])
@pytest.mark.parametrize("for_s", [3.0, 20.0])
def test_a_peer_that_sleeps_through_the_end_learns_of_it(at_s: float, for_s: float) -> None:
    """Another one was killed before, whose record looks like that of a peer that works on until it has expired."""
    killed, asleep = PeerId("relay_1_0"), PeerId("relay_2_1")
    faults = Fault("kill", killed, at_event=(1, 2)), Fault("blink", asleep, at_s=at_s, for_s=for_s)
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=1, iterations=3, ends=True), faults)
    until_all_have_left(swarm)
    assert [peer for peer, _, _ in swarm.reported("run_over")].count(asleep) == 1


def test_a_lie_about_the_end_is_not_remembered_for_good() -> None:
    """The liar's record is gone, and so are all others, as when a line is cut."""
    swarm = small_swarm(SmallConfig(stages=1, stage_peers=2, iterations=1000, ends=True))
    swarm.run(2)
    machine = swarm.world.peers[PeerId("relay_1_0")].machine
    view = machine.ctx.view
    assert view is not None
    lies = replace(view.records[PeerId("relay_1_1")], completion=Completion.EVERYWHERE, weights_version=1000)
    alone = view.without(view.records)
    lied, now = NetworkView.of([*view.records.values(), replace(lies, peer=PeerId("liar"))], 1, 1), machine.ctx.now
    machine.handle(ev.ViewChanged(lied), now)
    assert not machine.ctx.is_armed(ev.Timer.END, ""), "others work on"
    machine.handle(ev.ViewChanged(alone), now + REMEMBERED_S - 1)
    assert machine.ctx.is_armed(ev.Timer.END, "")
    machine.handle(ev.ViewChanged(alone), now + REMEMBERED_S + 1)
    assert not machine.ctx.is_armed(ev.Timer.END, "")


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


def ended_alike(swarm: SmallSwarm) -> tuple[object, Evaluations | None]:
    """All have left, with the same weights, for the same reason: how many iterations were done, and what was known."""
    until_all_have_left(swarm)
    everybody = sorted(swarm.world.peers)
    over = {peer: report.fields["iterations"] for peer, report, _ in swarm.reported("run_over")}
    known = {peer: swarm.world.peers[peer].machine.participant.progress.evaluating.known for peer in everybody}
    assert sorted(over) == everybody and len(set(over.values())) == len(set(known.values())) == 1, swarm.story()
    return over[everybody[0]], known[everybody[0]]


UNDISTURBED = 6, Evaluations(Evaluated(5, 2.2), 2, 2.0, 3)


def test_evaluations_without_a_lower_loss_end_the_run_for_all_peers_alike() -> None:
    swarm = small_swarm(WAITS)
    checkpoints, ends = written(swarm), []
    carry_out = swarm.world.population.carry_out

    def note(peer: object, effect: ef.Effect) -> None:
        if isinstance(effect, ef.End):
            ends.append(effect.reason)
        carry_out(peer, effect)  # type: ignore[arg-type]

    swarm.world.population.carry_out = note
    assert ended_alike(swarm) == UNDISTURBED
    everybody = sorted(swarm.world.peers)
    assert sorted(peer for peer, version in checkpoints if version == 6) == everybody, "the last weights are written by all"
    why = "3 evaluations in a row were not better than the one after 2 iterations (loss 2.0000)"
    assert ends == [f"6 iterations are done, and {why}"] * len(everybody)
    assert {report.fields["early"] for _, report, _ in swarm.reported("run_complete")} == {why}
    assert not swarm.reported("peer_lost")


def test_without_patience_the_same_evaluations_end_nothing() -> None:
    swarm = small_swarm(replace(WAITS, patience=0, iterations=8))
    until_all_have_left(swarm)
    assert {report.fields["iterations"] for _, report, _ in swarm.reported("run_over")} == {8}


@pytest.mark.parametrize("peer", ["data_0", "data_1", "relay_1_0"])
@pytest.mark.parametrize("iteration", [3, 5])
def test_whoever_is_killed_and_started_again_ends_with_the_others(peer: str, iteration: int) -> None:
    """Whoever leads meanwhile counts on from where all are; without the data peer that evaluates there is less to count."""
    for moment in range(2, 30, 9):
        fault = Fault("restart", PeerId(peer), at_event=(iteration, moment), for_s=1.0)
        swarm = small_swarm(WAITS, [fault])
        ended = ended_alike(swarm)
        assert swarm.faults.fired, moment
        assert ended == UNDISTURBED or peer == "data_0"


def test_a_swarm_that_is_started_again_from_its_disks_counts_on() -> None:
    swarm = small_swarm(WAITS)
    everybody = sorted(swarm.world.peers)
    assert swarm.world.kernel.run(lambda: all(5 in p.kept and 5 in p.evaluations for p in swarm.world.peers.values()), 120.0), (
        swarm.story()
    )
    for peer in everybody:
        swarm.world.kill(peer)
    for peer in everybody:
        swarm.faults.restart(peer, fresh=False)
    assert ended_alike(swarm) == UNDISTURBED


def test_a_peer_that_comes_when_evaluations_have_ended_the_run_is_told_so() -> None:
    swarm = small_swarm(WAITS)
    late = PeerId("relay_1_1")
    swarm.world.kill(late)
    assert swarm.world.kernel.run(lambda: bool(swarm.reported("run_complete_everywhere")), 120.0), swarm.story()
    swarm.faults.restart(late, fresh=True)
    assert swarm.world.kernel.run(lambda: not swarm.world.peers[late].alive, 60.0), swarm.story()
    assert [report.fields["iterations"] for peer, report, _ in swarm.reported("run_over") if peer == late] == [6]
