"""PowerSGD between real peers: two rounds of one attempt, equal bits, and a failure of either that changes nothing."""

from __future__ import annotations

import asyncio

import pytest
import torch

from gwtf_p2p.live.compute.all_reduce import Averager, AveragingFailed, AveragingGroup
from gwtf_p2p.protocol.wire.tensor_formats import average_bytes
from tests.live.compute.test_all_reduce import DEADLINE_S, again_and_again, gradient_of, group_of, tensors_of
from tests.live.conftest import StartPeer

pytestmark = pytest.mark.live

SHAPES: list[tuple[int, ...]] = [(300, 260), (1,), (), (0,), (256,), (4, 64, 200)]
RANK = 8


async def test_all_members_end_with_the_same_bits_of_few_bytes_and_what_is_left_over_comes_later(start_peer: StartPeer) -> None:
    peers = [await start_peer() for _ in range(3)]
    averagers = [Averager(peer.rpc, "powersgd", RANK) for peer in peers]
    inputs = [tensors_of(seed, SHAPES) for seed in range(3)]
    total, errors, results = await again_and_again(peers, averagers, inputs, rounds=4)
    assert errors[-1] < errors[0] and [result.shape for result in total] == [torch.Size(shape) for shape in SHAPES]
    sent = sum(result.sent_bytes for result in results)
    # Two members send two thirds of their own each, and each of the three its third of the result to two others.
    assert sent <= 1.05 * average_bytes(SHAPES, "powersgd", RANK) * 10 / 3 < 0.2 * average_bytes(SHAPES, "float32", 0) * 10 / 3


async def test_a_member_that_is_lost_between_the_rounds_fails_the_attempt_by_name(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    averagers = [Averager(peer.rpc, "powersgd", RANK) for peer in (a, b)]
    inputs = [tensors_of(seed, SHAPES) for seed in range(2)]
    before = [tensor.clone() for tensor in inputs[0]]
    reduce, rounds = averagers[0]._all_reduce, []

    async def lost_after_the_first(group: AveragingGroup, *rest: object) -> object:
        rounds.append(group.group_id)
        outcome = await reduce(group, *rest)  # type: ignore[arg-type]
        averagers[0].peer_lost(b.id, "gone")
        return outcome

    averagers[0]._all_reduce = lost_after_the_first  # type: ignore[assignment]
    group = group_of((a, b), (1, 1))
    attempts = [
        averagers[0].average(group, gradient_of(inputs[0]), DEADLINE_S),
        averagers[1].average(group, gradient_of(inputs[1]), 2.0),
    ]
    outcome, other = await asyncio.gather(*attempts, return_exceptions=True)
    assert isinstance(outcome, AveragingFailed) and outcome.peer == b.id and outcome.reason == "gone"
    assert isinstance(other, AveragingFailed) and rounds == [f"{group.group_id}/1"]
    assert all(torch.equal(x, y) for x, y in zip(inputs[0], before, strict=True))
