"""Averages in rows, between real peers: equal bits in every format, the weighted mean, and a named failure in every phase."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from gwtf_p2p.live.compute.all_reduce import Averager, AverageResult, AveragingFailed, AveragingGroup
from gwtf_p2p.live.compute.all_reduce_round import Round
from gwtf_p2p.protocol.averages.rows import rows_of
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, LEAST
from gwtf_p2p.protocol.wire.tensor_formats import LOW_RANK
from gwtf_p2p.training.compute.values import Gradient
from tests.live.compute.test_all_reduce import assert_equal_bits, gradient_of, norm_of, tensors_in, tensors_of
from tests.live.conftest import DEADLINE_S, LivePeer, StartPeer

pytestmark = pytest.mark.live

MOST = 2
SHAPES = [(300, 70), (1,), (), (17, 3, 5), (0,), (40_000,)]
FORMATS = [("float32", 0), pytest.param(("float16", 0), marks=pytest.mark.slow), ("int8", 0), (LOW_RANK, 8)]
TOLERANCE = {"float32": 1e-6, "float16": 4e-3, "int8": 0.2}


def group_of(peers: Sequence[LivePeer], weights: Sequence[float], attempt: int = 0, **more: object) -> AveragingGroup:
    members = tuple(peer.id for peer in peers)
    return AveragingGroup(f"run/1/0/{attempt}", members, tuple(weights), **{"all_with_all": MOST, **more})  # type: ignore[arg-type]


async def average(
    averagers: Sequence[Averager],
    group: AveragingGroup,
    inputs: Sequence[list[torch.Tensor]],
    owed: Sequence[Gradient | None] | None = None,
) -> list[AverageResult]:
    each = zip(averagers, inputs, owed or [None for _ in averagers], strict=True)
    return list(await asyncio.gather(*(a.average(group, gradient_of(own), DEADLINE_S, residual) for a, own, residual in each)))


@pytest.mark.parametrize("form", FORMATS, ids=["float32", "float16", "int8", LOW_RANK])
async def test_rows_end_with_the_same_bits_which_are_the_weighted_mean(start_peer: StartPeer, form: tuple[str, int]) -> None:
    """Four in two rows; six in three rows, whose lanes are averaged in rows again; five, of which two are guests; a row that
    brings nothing; one that is left out."""
    peers = [await start_peer() for _ in range(6)]
    averagers = [Averager(peer.rpc, *form) for peer in peers]
    cases: list[tuple[tuple[float, ...], tuple[int, ...]]] = [
        ((1, 2, 3, 4), ()),
        ((1, 2, 0, 5, 1, 3), ()),
        ((3, 1, 2, 1, 4), ()),
        ((0, 0, 2, 1), ()),
        ((1, 0, 2, 1, 3), (1,)),
    ]
    for attempt, (weights, out) in enumerate(cases):
        those = peers[: len(weights)]
        inputs = [tensors_of(seed, SHAPES) for seed in range(len(weights))]
        group = group_of(those, weights, attempt, left_out=tuple(peers[k].id for k in out))
        assert rows_of(group.members, MOST, group.left_out) is not None
        results = await average(averagers[: len(weights)], group, inputs)
        assert_equal_bits(results)
        for k, result in enumerate(tensors_in(results[0])):
            exact = sum(w * own[k].double() for w, own in zip(weights, inputs, strict=True)) / sum(weights)
            assert result.shape == inputs[0][k].shape
            if form[0] in TOLERANCE:
                torch.testing.assert_close(result.double(), exact, rtol=0.0, atol=TOLERANCE[form[0]])


async def test_each_sends_twice_the_values_in_few_messages(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[PeerId, PeerId]] = []
    push = Round._push

    async def counted(self: Round, to: int, phase: str, batch: int, payload: bytearray) -> None:
        sent.append((self._rpc.peer_id, self.circle.members[to]))
        await push(self, to, phase, batch, payload)

    monkeypatch.setattr(Round, "_push", counted)
    peers = [await start_peer() for _ in range(6)]
    inputs = [tensors_of(seed, [(120_000,)]) for seed in range(6)]
    results = await average([Averager(peer.rpc) for peer in peers], group_of(peers, [1.0] * 6), inputs)
    assert_equal_bits(results)
    assert sum(result.sent_bytes for result in results) == 2 * 5 * 4 * 120_000
    assert max(sum(sender == peer.id for sender, _ in sent) for peer in peers) < 2 * 5


async def test_what_int8_takes_is_made_up_for_across_rows_too(start_peer: StartPeer) -> None:
    weights = (3.0, 1.0, 2.0, 0.0)
    peers = [await start_peer() for _ in weights]
    averagers, inputs = [Averager(peer.rpc, "int8") for peer in peers], [tensors_of(seed) for seed in range(4)]
    exact = [sum(w * own[k] for w, own in zip(weights, inputs, strict=True)) / sum(weights) for k in range(len(inputs[0]))]
    owed: list[Gradient | None] = [None for _ in peers]
    total, errors = [torch.zeros_like(tensor) for tensor in inputs[0]], []
    for attempt in range(12):
        results = await average(averagers, group_of(peers, weights, attempt), inputs, owed)
        assert_equal_bits(results)
        owed = [result.residual for result in results]
        total = [tensor + mean for tensor, mean in zip(total, tensors_in(results[0]), strict=True)]
        errors.append(norm_of(total[k] / (attempt + 1) - exact[k] for k in range(len(exact))))
    assert errors[-1] < errors[0] / 4


@pytest.mark.parametrize(("phase", "where"), [("part", "row"), ("part", "lane"), ("result", "lane"), ("result", "row")])
async def test_one_that_ends_in_any_phase_fails_the_attempt_and_the_others_average_without_it(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch, phase: str, where: str
) -> None:
    """Those that have nothing to do with it hear of it as they do in a swarm, by the word that it is lost."""
    peers = [await start_peer() for _ in range(5)]
    inputs = [tensors_of(seed) for seed in range(5)]
    before = [[tensor.clone() for tensor in own] for own in inputs]
    averagers, victim = [Averager(peer.rpc) for peer in peers], peers[0]
    group, without = group_of(peers, [1.0] * 5, all_with_all=3), group_of(peers[1:], [1.0] * 4, 1, all_with_all=3)
    push, ended = Round._push, asyncio.Event()

    async def ends(self: Round, to: int, of: str, batch: int, payload: bytearray) -> None:
        kind = self.circle.name.rsplit("/", 1)[-1]
        if self._rpc.peer_id == victim.id and of == phase and kind.startswith(where):
            ended.set()
            await asyncio.Event().wait()
        await push(self, to, of, batch, payload)

    monkeypatch.setattr(Round, "_push", ends)
    tasks = [
        asyncio.create_task(averager.average(group, gradient_of(own), DEADLINE_S))
        for averager, own in zip(averagers, inputs, strict=True)
    ]
    async with asyncio.timeout(DEADLINE_S):
        await ended.wait()
    tasks[0].cancel()
    await victim.daemon.stop()
    for averager in averagers[1:]:
        averager.peer_lost(victim.id, "gone")
    outcomes = (await asyncio.gather(*tasks, return_exceptions=True))[1:]
    failed = [outcome for outcome in outcomes if isinstance(outcome, AveragingFailed) and outcome.peer == victim.id]
    whole = [outcome for outcome in outcomes if isinstance(outcome, AverageResult)]
    assert failed and len(failed) + len(whole) == 4, outcomes
    assert not whole or (phase, where) == ("result", "row"), "the other row may be through by then"
    assert not any(averager._rounds or averager._outermost for averager in averagers), "nothing of it is left"
    assert all(torch.equal(x, y) for own, old in zip(inputs, before, strict=True) for x, y in zip(own, old, strict=True))
    assert_equal_bits(await average(averagers[1:], without, inputs[1:]))


async def test_in_a_row_to_which_one_alone_brings_something_it_is_the_one_that_is_named(start_peer: StartPeer) -> None:
    """By the past, as where two contribute; else those of the other row would name whoever has summed it up."""
    peers = [await start_peer() for _ in range(4)]
    averagers, weights, bad = [Averager(peer.rpc) for peer in peers], (0.0, 1.0, 1.0, 1.0), peers[1].id
    inputs = [tensors_of(seed, [(64, 480)]) for seed in range(4)]
    for attempt in range(LEAST + 1):
        assert_equal_bits(await average(averagers, group_of(peers, weights, attempt), inputs))
    group, large = group_of(peers, weights, LEAST + 1), [inputs[1][0] * 30 * FACTOR]
    brought = [inputs[0], large, *inputs[2:]]
    work = [
        asyncio.ensure_future(averager.average(group, gradient_of(own), DEADLINE_S))
        for averager, own in zip(averagers, brought, strict=True)
    ]
    await asyncio.wait([work[0], *work[2:]], return_when=asyncio.FIRST_COMPLETED)
    found = [task.exception() for task in work if task.done()]
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    assert found and all(isinstance(error, AveragingFailed) and error.refused and error.peer == bad for error in found), found


async def test_what_another_phase_or_lane_would_allow_is_refused(start_peer: StartPeer) -> None:
    """Four in two rows: what one of the other row's other lane sends is not due, nor is a part where a sum is."""
    a, b, c, d = [await start_peer() for _ in range(4)]
    averager = Averager(a.rpc)
    group = group_of((a, b, c, d), [1.0] * 4)
    waiting = asyncio.create_task(averager.average(group, gradient_of(tensors_of(0)), DEADLINE_S))
    await asyncio.sleep(0)
    assert [*averager._rounds] == [f"{group.group_id}/row0", f"{group.group_id}/lane0"]

    async def reason_of(sender: LivePeer, circle: str, phase: str) -> str:
        header = {"kind": "average", "group": f"{group.group_id}/{circle}", "phase": phase, "batch": 0}
        result = await sender.rpc.push(a.id, header, b"", DEADLINE_S)
        return str(result.reply["reason"])

    for sender, circle in ((c, "row0"), (d, "row0"), (b, "lane0"), (d, "lane0")):
        for phase in ("part", "result"):
            assert "not due" in await reason_of(sender, circle, phase)
    assert "are due" in await reason_of(b, "row0", "part")
    assert "are due" in await reason_of(c, "lane0", "result")
    assert "not in this group" in await reason_of(b, "row1", "part")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
