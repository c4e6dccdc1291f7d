"""Which peer moves to which stage, and that nobody moves without need: tables, and 100 iterations of noisy timings."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.membership.rebalancing import COOLDOWN_S, LOOK_S, LOOKS, Mover, best_move, choose_stage
from gwtf_p2p.protocol.membership.swarm_rebalancing import Move, NoMove
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, Timing

ITERATION_S = 10.0


def record(name: str, stage: int, seconds: float, capacity: int = 4, state: PeerState = PeerState.ONLINE) -> StageRecord:
    timing = Timing(seconds / 3, 5, 0.0), Timing(2 * seconds / 3, 5, 0.0)
    return StageRecord(PeerId(name), RunId("r"), Stage(stage), state, capacity, forward=timing[0], backward=timing[1])


def view(records: list[StageRecord], stages: int = 3) -> NetworkView:
    return NetworkView.of(records, stages, 1_000_000)


def swarm(*counts: int, seconds: float = 0.3) -> list[StageRecord]:
    """So many peers in stage 1, 2, …"""
    return [record(f"relay_{k}_{i}", k, seconds) for k, count in enumerate(counts, 1) for i in range(count)]


def test_the_bottleneck_gets_a_peer_of_a_stage_that_can_spare_one() -> None:
    move = best_move(view(swarm(6, 3, 3)))
    assert isinstance(move, Move) and (move.peer, move.from_stage, move.to_stage) == ("relay_1_0", 1, 2)


def test_of_the_peers_that_could_move_the_one_that_helps_most_does() -> None:
    fast = record("relay_1_9", 1, 0.1)
    move = best_move(view([*swarm(4, 1, 4), fast]))
    assert isinstance(move, Move) and (move.peer, move.to_stage) == (fast.peer, 2)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 2, 2), (3, 2, 2), (5, 4, 4), (1, 1, 0)])
def test_nobody_moves_where_little_is_gained_or_a_stage_would_be_emptied(counts: tuple[int, ...]) -> None:
    assert isinstance(best_move(view(swarm(*counts))), NoMove)


def test_who_has_no_memory_for_a_stage_or_is_to_stay_is_passed_over_by_all() -> None:
    """The others would wait for its move for ever."""
    records = [replace(r, moves_to=(Stage(1), Stage(3))) if r.peer != "relay_1_4" else r for r in swarm(6, 3, 3)]
    move = best_move(view(records))
    assert isinstance(move, Move) and (move.peer, move.to_stage) == ("relay_1_4", 2)
    nobody = best_move(view([replace(r, moves_to=(r.stage,)) for r in records]))
    assert nobody == NoMove("no stage can spare a peer that may move")


def test_an_empty_stage_gets_somebody() -> None:
    move = best_move(view(swarm(2, 0, 2)))
    assert isinstance(move, Move) and move.to_stage == 2


def test_nobody_moves_while_somebody_is_on_its_way() -> None:
    coming = record("relay_2_9", 2, 0.3, state=PeerState.SYNCING)
    assert isinstance(best_move(view([*swarm(6, 3, 3), coming])), NoMove)


def test_few_slots_make_a_bottleneck_too() -> None:
    """All compute alike, but stage 2 holds little: the newcomer goes there, and so does a mover."""
    records = [replace(r, capacity=1 if r.stage == 2 else 8) for r in swarm(3, 2, 3)]
    assert choose_stage(view(records), PeerId("new")).stage == 2
    move = best_move(view(records))
    assert isinstance(move, Move) and move.to_stage == 2


def test_a_newcomer_goes_where_the_swarm_is_slowest() -> None:
    assert choose_stage(view(swarm(3, 2, 3)), PeerId("new")).stage == 2
    assert choose_stage(view([*swarm(2, 0, 2), record("slow", 2, 9.0)]), PeerId("new")).stage == 2


def run(records: list[StageRecord], noise: float, iterations: int, seed: int) -> list[tuple[float, Move]]:
    """Every peer looks; movers arrive at once. Returns the moves with their times."""
    random = Random(seed)
    movers = {r.peer: Mover(r.peer) for r in records}
    moves: list[tuple[float, Move]] = []
    now = 0.0
    while now < iterations * ITERATION_S:
        now += LOOK_S
        noisy = []
        for r in records:
            assert r.forward is not None and r.backward is not None
            factor = random.uniform(1 - noise, 1 + noise)
            noisy.append(
                replace(
                    r,
                    forward=replace(r.forward, median_s=r.forward.median_s * factor),
                    backward=replace(r.backward, median_s=r.backward.median_s * factor),
                )
            )
        seen = view(noisy)
        found = [move for mover in movers.values() if isinstance(move := mover.look(seen, now), Move)]
        assert len(found) <= 1, "one mover at a time"
        for move in found:
            moves.append((now, move))
            records = [replace(r, stage=move.to_stage) if r.peer == move.peer else r for r in records]
            movers[move.peer] = Mover(move.peer)
    return moves


@pytest.mark.parametrize("seed", range(5))
def test_a_balanced_swarm_does_not_flap(seed: int) -> None:
    assert run(swarm(4, 4, 4), noise=0.15, iterations=100, seed=seed) == []


@pytest.mark.parametrize("seed", range(5))
def test_an_unbalanced_swarm_is_balanced_and_then_left_alone(seed: int) -> None:
    moves = run(swarm(6, 3, 3), noise=0.1, iterations=100, seed=seed)
    assert [move.from_stage for _, move in moves] == [1, 1]
    assert {move.to_stage for _, move in moves} == {2, 3}
    first, second = (at for at, _ in moves)
    assert first >= LOOKS * LOOK_S and second - first >= COOLDOWN_S
