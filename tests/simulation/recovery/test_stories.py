"""Seeded stories of faults: what is lost is done again, once, and nobody waits longer than it takes to find out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.recovery_sweep import Sweep, draw_config, draw_script
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.wire.messages import Commit, Lost
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import Tally
from gwtf_p2p.simulation.world.small_swarm import FORWARD_S, LATENCY_S, MICROBATCH_BYTES, SmallConfig, SmallSwarm, small_swarm

HOP_S = LATENCY_S + MICROBATCH_BYTES / 1e8 + FORWARD_S


def peers(*names: str) -> tuple[PeerId, ...]:
    return tuple(PeerId(name) for name in names)


def everything(swarm: SmallSwarm, iterations: int) -> Tally:
    config = swarm.config
    return Tally(iterations * config.data_peers * config.microbatches, lost=0, double=0)


def stage_peer_events(swarm: SmallSwarm, name: str, wanted: Callable[[ev.Event], bool]) -> None:
    """Kill a stage peer when it handles the first such event of iteration 1."""
    before = swarm.world.on_event
    assert before is not None
    done = []

    def watch(peer: PeerId, event: ev.Event, now: float) -> None:
        before(peer, event, now)
        machine = swarm.world.peers[peer].machine
        if peer == name and machine.participant.version == 1 and wanted(event) and not done:
            done.append(now)
            swarm.world.kill(peer)
            swarm.reports.append((peer, ef.Report("killed"), now))

    swarm.world.on_event = watch


@pytest.mark.parametrize("kind", ["kill", "freeze"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("at_s", [1.6, 1.9, 2.2, 2.5])
def test_one_stage_peer_is_lost_at_any_time(kind: str, stage: int, at_s: float) -> None:
    swarm = small_swarm(SmallConfig(), [Fault(kind, PeerId(f"relay_{stage}_1"), at_s=at_s)])
    assert swarm.run(iterations=4) == everything(swarm, 4)
    assert swarm.faults.fired and swarm.reported("peer_lost"), "the fault must have been noticed"


@pytest.mark.parametrize(
    ("moment", "kind"),
    [
        (lambda e: isinstance(e, ev.Computed) and e.work is ev.Work.FORWARD, "forward"),
        (lambda e: isinstance(e, ev.Offered) and type(e.message).__name__ == "Backward", "backward"),
        (lambda e: isinstance(e, ev.Computed) and e.work is ev.Work.BACKWARD, "backward"),
    ],
)
def test_after_a_kill_a_microbatch_moves_on_within_three_hops(moment: Callable[[ev.Event], bool], kind: str) -> None:
    swarm = small_swarm(SmallConfig(stage_peers=3))
    stage_peer_events(swarm, "relay_2_1", moment)
    assert swarm.run(iterations=3) == everything(swarm, 3)
    (_, _, killed_at) = swarm.reported("killed")[0]
    recovered = [at for _, _, at in swarm.reported("recovered")]
    assert swarm.count("recovery")[kind] >= 1
    assert recovered and recovered[0] - killed_at <= 3 * HOP_S


def test_exactly_one_stage_is_computed_again() -> None:
    """The stage peers of the other stages compute each microbatch once, the dead one's stage its microbatches twice."""
    swarm = small_swarm(SmallConfig(microbatches=6, stage_peers=2), [Fault("kill", PeerId("relay_2_1"), at_s=4.0)])
    swarm.run(iterations=4)
    wasted: dict[str, float] = {}
    for who, report, _ in swarm.reported("stepped"):
        seconds = report.fields["wasted_s"]
        assert isinstance(seconds, float)
        wasted[who] = wasted.get(who, 0.0) + seconds
    assert swarm.reported("recovery")
    assert all(seconds < 1e-9 for who, seconds in wasted.items()), wasted


def test_what_was_counted_by_a_lost_peer_is_done_again() -> None:
    """It is killed while the averages begin: nobody waits for its computations any more, only the ledger misses them."""
    swarm = small_swarm(SmallConfig())
    stage_peer_events(swarm, "relay_2_1", lambda e: isinstance(e, ev.Received) and type(e.message).__name__ == "Prepare")
    assert swarm.run(iterations=3) == everything(swarm, 3)
    assert swarm.count("recovery")["aggregation"] >= 1 and swarm.reported("average_failed")


def test_with_fast_recovery_it_is_dropped_and_said_so() -> None:
    swarm = small_swarm(SmallConfig(exact=False))
    stage_peer_events(swarm, "relay_2_1", lambda e: isinstance(e, ev.Received) and type(e.message).__name__ == "Prepare")
    tally = swarm.run(iterations=3)
    assert tally.lost == len(swarm.reported("dropped")) > 0 and tally.double == 0
    assert not swarm.count("recovery")["aggregation"]


@pytest.mark.parametrize("at_s", [1.7, 2.0, 2.3])
def test_two_crashes_at_once_in_neighbouring_stages(at_s: float) -> None:
    script = [Fault("kill", peer, at_s=at_s) for peer in peers("relay_2_0", "relay_3_0")]
    swarm = small_swarm(SmallConfig(), script)
    assert swarm.run(iterations=4) == everything(swarm, 4)


@pytest.mark.parametrize("gap_s", [0.03, 0.06, 0.1, 0.2])
def test_the_replacement_dies_too(gap_s: float) -> None:
    script = [Fault("kill", PeerId("relay_2_0"), at_s=1.9), Fault("kill", PeerId("relay_2_1"), at_s=1.9 + gap_s)]
    swarm = small_swarm(SmallConfig(stage_peers=3), script)
    assert swarm.run(iterations=4) == everything(swarm, 4)


@pytest.mark.parametrize("for_s", [0.1, 1.0, 3.0, 8.0])
def test_a_peer_that_was_thought_lost_comes_back(for_s: float) -> None:
    """Frozen for a moment, through detection, through a commit that it misses: it never serves with old weights."""
    swarm = small_swarm(SmallConfig(), [Fault("blink", PeerId("relay_2_1"), at_s=4.0, for_s=for_s)])
    assert swarm.run(iterations=8) == everything(swarm, 8)
    missed = any(who == "relay_2_1" for who, _, _ in swarm.reported("out_of_step"))
    assert missed == (for_s > 3.0) and bool(swarm.reported("caught_up")) == missed


def test_a_stage_that_loses_everybody_pauses_the_training_and_resumes_it() -> None:
    script = [Fault("restart", peer, at_s=2.6, for_s=6.0) for peer in peers("relay_2_0", "relay_2_1")]
    swarm = small_swarm(SmallConfig(), script)
    assert swarm.run(iterations=4) == everything(swarm, 4)
    (_, empty, at_s), (_, staffed, again_s) = swarm.reported("stage_empty")[0], swarm.reported("stage_staffed")[0]
    assert empty.fields["stage"] == staffed.fields["stage"] == 2 and again_s - at_s > 5.0


def test_a_stage_whose_newest_weights_are_gone_takes_the_swarm_back() -> None:
    """All peers of a stage die; the one that comes back has an older checkpoint, and so has everybody."""
    swarm = small_swarm(SmallConfig())
    world, kernel = swarm.world, swarm.world.kernel

    def lose() -> None:
        for name in peers("relay_2_0", "relay_2_1"):
            world.kill(name)
        world.peers[PeerId("relay_2_0")].kept = [1]
        world.peers[PeerId("relay_2_1")].kept = []
        kernel.after(1.0, lambda: swarm.faults.restart(PeerId("relay_2_0"), fresh=False))

    kernel.at(5.0, lose)
    assert swarm.run(iterations=6) == everything(swarm, 6)
    (_, back, _) = swarm.reported("going_back")[0]
    assert back.fields["version"] == 1 and back.fields["epoch"] == 1
    missing = swarm.reported("version_missing")[0][1]
    assert missing.fields["stage"] == 2 and missing.fields["have"] == 1


def test_if_no_version_is_common_nothing_is_committed_and_it_says_so() -> None:
    swarm = small_swarm(SmallConfig())
    world, kernel = swarm.world, swarm.world.kernel

    def lose() -> None:
        for name in peers("relay_2_0", "relay_2_1"):
            world.kill(name)
            world.peers[name].kept = []
        for peer in world.peers.values():
            peer.kept = [version for version in peer.kept if version >= 2]
        kernel.after(1.0, lambda: swarm.faults.restart(PeerId("relay_2_0"), fresh=True))

    kernel.at(7.0, lose)
    with pytest.raises(AssertionError, match="stuck"):
        swarm.run(iterations=12, deadline_s=60.0)
    swarm.invariants.check()
    assert swarm.reported("no_common_version") and not swarm.reported("going_back")


def test_everything_is_killed_and_starts_again() -> None:
    names = peers("data_0", *(f"relay_{k}_{r}" for k in (1, 2, 3) for r in (0, 1)))
    script = [Fault("restart", peer, at_s=4.4, for_s=1.0 + 0.3 * i) for i, peer in enumerate(names)]
    swarm = small_swarm(SmallConfig(), script)
    assert swarm.run(iterations=6) == everything(swarm, 6)


def test_a_data_peer_comes_back_and_nothing_is_computed_again() -> None:
    """Its stage peers have counted its microbatches: the way is walked again, only stage 0 computes."""
    swarm = small_swarm(SmallConfig(), [Fault("restart", PeerId("data_0"), at_s=2.28, for_s=2.0)])
    assert swarm.run(iterations=3) == everything(swarm, 3)
    counted_before = [r for who, r, at in swarm.reported("stepped") if who.startswith("relay")]
    assert sum(float(str(r.fields["wasted_s"])) for r in counted_before) < 4 * 0.3


@pytest.mark.parametrize("kind", ["restart", "blink"])
@pytest.mark.parametrize("name", ["data_0", "data_1"])
@pytest.mark.parametrize("at_s", [1.7, 2.4, 3.0])
def test_one_of_several_data_peers_is_lost(kind: str, name: str, at_s: float) -> None:
    """The coordinator too. The others close without it; its microbatches are in no gradient, or in all."""
    swarm = small_swarm(SmallConfig(data_peers=2), [Fault(kind, PeerId(name), at_s=at_s, for_s=6.0)])
    tally = swarm.run(iterations=5)
    assert tally.lost == tally.double == 0 and tally.done >= 5 * 4


@pytest.mark.parametrize("said", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize("returns", [True, False])
def test_the_coordinator_dies_between_its_commits(said: int, returns: bool) -> None:
    """If it told anybody, all that have prepared commit; if it told nobody, they may too, but all the same."""
    swarm = small_swarm(SmallConfig(data_peers=2))
    coordinator = swarm.world.peers[PeerId("data_0")]
    handle, told = coordinator.machine.handle, []

    def cut_off(event: ev.Event, now: float) -> list[ef.Effect]:
        kept = []
        for effect in handle(event, now):
            if isinstance(effect, ef.Send) and isinstance(effect.message, Commit) and effect.message.iteration == 1:
                told.append(effect.to)
                if len(told) > said:
                    swarm.world.kernel.after(0.0, lambda: swarm.world.kill(PeerId("data_0")))
                    return kept
            kept.append(effect)
        return kept

    coordinator.machine.handle = cut_off  # type: ignore[method-assign]
    if returns:
        swarm.world.kernel.at(8.0, lambda: swarm.faults.restart(PeerId("data_0"), fresh=False))
    tally = swarm.run(iterations=5)
    assert len(told) == said + 1 and tally.lost == tally.double == 0
    assert len({peer.machine.participant.committed for peer in swarm.world.peers.values() if peer.alive}) == 1


def test_a_thawed_coordinator_finds_that_the_others_have_gone_on() -> None:
    swarm = small_swarm(SmallConfig(data_peers=2), [Fault("blink", PeerId("data_0"), at_s=2.9, for_s=12.0)])
    tally = swarm.run(iterations=12)
    assert tally.lost == tally.double == 0
    assert any(who == "data_0" for who, _, _ in swarm.reported("out_of_step"))
    assert any(who == "data_0" for who, _, _ in swarm.reported("caught_up"))


def test_a_draining_peer_that_misses_the_commit_leaves_all_the_same() -> None:
    """What it has counted is of no use any more, and nobody waits for it."""
    script = [Fault("drain", PeerId("relay_2_1"), at_s=4.0), Fault("blink", PeerId("relay_2_1"), at_s=4.01, for_s=8.0)]
    swarm = small_swarm(SmallConfig(), script)
    assert swarm.run(iterations=12) == everything(swarm, 12)
    assert len(swarm.faults.fired) == 2 and any(who == "relay_2_1" for who, _, _ in swarm.reported("drained"))


def test_a_data_peer_with_old_weights_takes_nobody_back() -> None:
    """It was away; then all are killed and it comes up first: the others' later weights are what training goes on from."""
    swarm = small_swarm(SmallConfig(data_peers=2, microbatches=2))
    world, kernel, names = swarm.world, swarm.world.kernel, list(swarm.world.peers)

    def begin_anew() -> None:
        for name in names:
            world.kill(name)
        for i, name in enumerate(names):
            kernel.after(1.0 + (0.5 if i else 0.0), lambda peer=name: swarm.faults.restart(peer, fresh=False))  # type: ignore[misc]

    kernel.at(3.0, lambda: world.kill(PeerId("data_0")))
    kernel.at(15.0, begin_anew)
    kernel.run(lambda: False, 15.0)
    newest = world.peers[PeerId("data_1")].machine.participant.version
    assert world.peers[PeerId("data_0")].machine.participant.version < newest - 3
    swarm.run(iterations=newest + 3)
    begun = [r.fields["iteration"] for who, r, at in swarm.reported("iteration_begins") if who == "data_1" and at > 16.0]
    assert begun and begun[0] == newest


@pytest.mark.parametrize("seed", [185, 365, 707, 1046, 2342])
def test_what_once_was_stuck_is_not(seed: int) -> None:
    """Found by the sweep: a lower attempt that nobody told it was superseded; a way walked again that ended at a redo that
    had been stopped; a draining peer without its commit; data peers that disagreed about who leads; a peer that slept while the
    swarm went back, and alone has its stage of the version that it went back to."""
    sweep = Sweep(iterations=5, microbatches=(3, 5, 8), slowness=10.0)
    config = draw_config(seed, sweep)
    swarm = small_swarm(config, draw_script(seed, config, sweep))
    tally = swarm.run(sweep.iterations, deadline_s=3000.0, most_steps=600_000)
    assert (tally.lost, tally.double) == (0, 0)


def test_two_neighbouring_stages_are_lost_after_their_backwards() -> None:
    """Found by the sweep: their redo is one way down and one way back, and only the upper stage was told of."""
    sweep = Sweep()
    config = draw_config(6541, sweep)
    tally = small_swarm(config, draw_script(6541, config, sweep)).run(sweep.iterations, deadline_s=500.0)
    assert (tally.lost, tally.double) == (0, 0)


@pytest.mark.parametrize("seed", [3141, 3209])
def test_a_coordinator_does_not_wait_for_the_answer_of_one_that_has_left(seed: int) -> None:
    sweep = Sweep()
    config = draw_config(seed, sweep)
    tally = small_swarm(config, draw_script(seed, config, sweep)).run(sweep.iterations, deadline_s=500.0)
    assert (tally.lost, tally.double) == (0, 0)


@pytest.mark.parametrize("seed", [671, 916, 1245, 1474])
def test_data_peers_that_wait_for_each_other_find_out(seed: int) -> None:
    """671: one came back in a new epoch, was admitted while an average was under way, and then waited to be admitted again.
    916, 1245: one that had led the iteration came back into it, and each took the other for its coordinator.
    1474: one that was behind took no notice of one that had started again with later weights, and went back without end."""
    sweep = Sweep()
    config = draw_config(seed, sweep)
    tally = small_swarm(config, draw_script(seed, config, sweep)).run(sweep.iterations, deadline_s=500.0)
    assert tally.double == 0 and (tally.lost == 0 or not config.exact)


@pytest.mark.parametrize("name", ["relay_1_0", "relay_2_1", "relay_3_0"])
@pytest.mark.parametrize("at_s", [0.5, 1.9, 2.4, 4.0])
def test_who_leaves_in_good_order_is_not_lost(name: str, at_s: float) -> None:
    """It finishes what it holds, waits for the commit, says goodbye; nothing is redone, nobody looks for it."""
    swarm = small_swarm(SmallConfig(), [Fault("drain", PeerId(name), at_s=at_s)])
    assert swarm.run(iterations=4) == everything(swarm, 4)
    assert any(who == name for who, _, _ in swarm.reported("drained"))
    assert not swarm.reported("peer_lost") and not swarm.reported("recovery")
    assert not swarm.world.peers[PeerId(name)].alive and (at_s < 1.5 or swarm.reported("peer_left"))


def test_who_has_left_may_come_back() -> None:
    swarm = small_swarm(SmallConfig(), [Fault("drain", PeerId("relay_2_1"), at_s=2.0)])
    swarm.world.kernel.at(6.0, lambda: swarm.faults.restart(PeerId("relay_2_1"), fresh=True))
    assert swarm.run(iterations=12) == everything(swarm, 12)
    assert not swarm.reported("peer_lost")
    microbatches = [r.fields["microbatches"] for who, r, _ in swarm.reported("stepped") if who == "relay_2_1"]
    assert isinstance(microbatches[-1], int) and microbatches[-1] > 0


@pytest.mark.parametrize("name", ["relay_1_1", "relay_2_0", "relay_3_1"])
@pytest.mark.parametrize("at_s", [1.51, 1.7, 2.0, 2.3])
def test_a_frozen_stage_peer_is_found_in_the_first_iteration(name: str, at_s: float) -> None:
    """Nothing is measured then: the silence of a peer that holds work is enough."""
    swarm = small_swarm(SmallConfig(microbatches=8), [Fault("freeze", PeerId(name), at_s=at_s)])
    assert swarm.run(iterations=2) == everything(swarm, 2)
    found = [at for _, r, at in swarm.reported("peer_lost") if r.fields["peer"] == name]
    assert found and found[0] - at_s < 5.0


@pytest.mark.parametrize("factor", [5.0, 50.0])
@pytest.mark.parametrize("name", ["relay_1_1", "relay_2_0", "relay_3_1"])
@pytest.mark.parametrize("at_s", [1.6, 4.0])
def test_who_suddenly_becomes_slow_is_not_taken_for_lost(name: str, at_s: float, factor: float) -> None:
    swarm = small_swarm(SmallConfig(), [Fault("slow", PeerId(name), at_s=at_s, factor=factor)])
    assert swarm.run(iterations=5) == everything(swarm, 5)
    assert swarm.faults.fired and not swarm.reported("peer_lost") and not swarm.reported("recovery")
    assert all(float(str(r.fields["wasted_s"])) < 1e-9 for _, r, _ in swarm.reported("stepped"))


def test_what_is_kept_for_recovery_is_bounded_and_published() -> None:
    """A stage peer is BUSY beyond its memory; what it keeps is in its record."""
    config = SmallConfig(data_peers=2, microbatches=3, capacity=8, memory_microbatches=3)
    swarm = small_swarm(config)
    before = swarm.world.on_event
    assert before is not None
    most = 0

    def watch(peer: PeerId, event: ev.Event, now: float) -> None:
        nonlocal most
        before(peer, event, now)
        machine = swarm.world.peers[peer].machine
        if isinstance(machine, StagePeer):
            record = stage_record(machine, OwnMeasurements(RunId("small")), 1)
            assert record.kept_bytes == len(machine.ctx.held) * 4 * MICROBATCH_BYTES <= record.memory_limit_bytes
            most = max(most, len(machine.ctx.held))

    swarm.world.on_event = watch
    assert swarm.run(iterations=6) == everything(swarm, 6)
    assert most == 3, "the bound is reached, and kept"


@pytest.mark.parametrize("at_s", [1.8, 4.2])
def test_a_stage_without_anybody_gets_a_peer_of_a_rich_stage(at_s: float) -> None:
    """Which begins from a copy of that stage's checkpoint; the training goes on from there."""
    config = SmallConfig(stage_peers=3, moves=True)
    script = [Fault("kill", peer, at_s=at_s) for peer in peers("relay_2_0", "relay_2_1", "relay_2_2")]
    swarm = small_swarm(config, script)
    assert swarm.run(iterations=8) == everything(swarm, 8)
    moves = [(who, r.fields["to_stage"]) for who, r, _ in swarm.reported("moving")]
    assert len(moves) == 1 and moves[0][1] == 2 and swarm.stages == {PeerId(moves[0][0]): 2}
    reached = swarm.reported("iteration_begins")
    version = max(int(str(r.fields["iteration"])) for _, r, at in reached if at < at_s)
    back = [int(str(r.fields["version"])) for _, r, _ in swarm.reported("going_back")]
    assert all(to >= version - 1 for to in back), "no more than the copy is behind is lost"


def test_a_swarm_out_of_balance_moves_one_peer_after_the_other_and_then_none() -> None:
    config = SmallConfig(stage_peers=4, moves=True, microbatches=6)
    swarm = small_swarm(config, [Fault("drain", PeerId(f"relay_2_{i}"), at_s=3.0) for i in range(3)])
    swarm.run(iterations=120, deadline_s=3000.0)
    moves = [(r.fields["stage"], r.fields["to_stage"]) for _, r, _ in swarm.reported("moving")]
    assert sorted(moves) == [(1, 2), (3, 2)], "three peers in each stage"
    assert not swarm.reported("peer_lost") and not swarm.reported("recovery")


@pytest.mark.parametrize("is_cut_off", [True, False])
def test_the_word_of_a_stage_peer_confirms_a_broken_connection_and_nothing_else(is_cut_off: bool) -> None:
    """A data peer that has lost the connection too need not wait for an answer of its own."""
    swarm = small_swarm(SmallConfig())
    swarm.run(iterations=1)
    data_peer, now = swarm.world.peers[PeerId("data_0")].machine, swarm.world.kernel.now
    if is_cut_off:
        data_peer.handle(ev.WatchBroken(PeerId("relay_2_1"), "the stream ended"), now)
    effects = data_peer.handle(ev.Received(PeerId("relay_1_0"), Lost(PeerId("relay_2_1"), "gone")), now)
    assert data_peer.ctx.liveness.is_lost(PeerId("relay_2_1")) is is_cut_off
    assert any(isinstance(effect, ef.Ask) for effect in effects) is not is_cut_off
