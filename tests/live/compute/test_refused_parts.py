"""Parts of an average that are far too large, between real peers: refused with their sender's name, in every form."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from gwtf_p2p.live.compute import all_reduce_round
from gwtf_p2p.live.compute.all_reduce import Averager, AverageResult, AveragingFailed, AveragingGroup
from gwtf_p2p.live.compute.all_reduce_parts import Batch, Parts, pack_parts
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, LEAST
from gwtf_p2p.protocol.trust.parts import RESULT_FACTOR
from gwtf_p2p.protocol.wire.tensor_formats import LOW_RANK
from gwtf_p2p.training.compute.values import HeldGradient
from tests.live.compute.test_all_reduce import assert_equal_bits, tensors_in
from tests.live.conftest import DEADLINE_S, LivePeer, StartPeer

pytestmark = pytest.mark.live

SHAPES = [(64, 48), (48,), (30, 200)]
FORMS = [("float32", 0), ("float16", 0), ("int8", 0), (LOW_RANK, 4)]


def gradient(seed: int, scale: float) -> HeldGradient:
    generator = torch.Generator().manual_seed(seed)
    return HeldGradient({str(n): torch.randn(shape, generator=generator) * scale for n, shape in enumerate(SHAPES)})


Outcome = AverageResult | AveragingFailed


class Group:
    """Members that average again and again; `scales` are how large each one's gradient is."""

    def __init__(self, peers: Sequence[LivePeer], form: tuple[str, int]) -> None:
        self.peers, self.attempts = list(peers), 0
        self.averagers = [Averager(peer.rpc, *form) for peer in peers]

    async def average(
        self, *scales: float, weights: Sequence[float] = (), left_out: tuple[PeerId, ...] = (), fails_for: PeerId | None = None
    ) -> list[Outcome]:
        """`fails_for`: for this member an attempt fails at one of the others, and ends, as its coordinator would have it."""
        self.attempts += 1
        weights = tuple(weights or (1.0,) * len(scales))
        members = tuple(peer.id for peer in self.peers)
        group = AveragingGroup(f"run/1/0/{self.attempts}", members, weights, left_out=left_out)
        each = zip(self.averagers, scales, strict=True)
        work = [asyncio.ensure_future(a.average(group, gradient(n, s), DEADLINE_S)) for n, (a, s) in enumerate(each)]
        waited_for = [task for peer, task in zip(self.peers, work, strict=True) if peer.id != fails_for]
        if fails_for is not None:
            waited_for = [*(await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED))[0]]
            for task in {*work} - {*waited_for}:
                task.cancel()
        await asyncio.wait(work)
        found = await asyncio.gather(*waited_for, return_exceptions=True)
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, AveragingFailed):
                raise outcome
        return found  # type: ignore[return-value]


def refused(outcomes: Sequence[Outcome]) -> set[PeerId | None]:
    """Whose parts or sums were not taken."""
    return {outcome.peer for outcome in outcomes if isinstance(outcome, AveragingFailed) and outcome.refused}


@pytest.mark.parametrize("form", FORMS, ids=[form for form, _ in FORMS])
async def test_of_three_one_that_multiplies_is_named_and_the_next_average_is_theirs(
    start_peer: StartPeer, form: tuple[str, int]
) -> None:
    peers = [await start_peer() for _ in range(3)]
    group, bad = Group(peers, form), peers[1].id
    scale = 30 * FACTOR if form[0] != "float16" else 3e4  # the most that float16 holds is 65504
    small = 1.0 if form[0] != "float16" else 1e-3
    outcomes = await group.average(small, scale, small, fails_for=bad)
    assert outcomes and all(refused([outcome]) == {bad} for outcome in outcomes)
    after = await group.average(small, scale, small, weights=(1.0, 0.0, 1.0), left_out=(bad,))
    results = [outcome for outcome in after if isinstance(outcome, AverageResult)]
    assert len(results) == 3, after
    assert_equal_bits(results)
    if form[0] == "float32":
        honest = [gradient(n, small).tensors for n in (0, 2)]
        for got, name in zip(tensors_in(results[0]), honest[0], strict=True):
            assert torch.equal(got, (honest[0][name] + honest[1][name]) / 2)


@pytest.mark.parametrize("form", FORMS[2:], ids=[form for form, _ in FORMS[2:]])
async def test_of_two_the_past_decides_and_growth_of_both_is_taken(start_peer: StartPeer, form: tuple[str, int]) -> None:
    peers = [await start_peer() for _ in range(2)]
    group, bad = Group(peers, form), peers[1].id
    for _ in range(LEAST // 2):
        assert_equal_bits([o for o in await group.average(1.0, 2.0) if isinstance(o, AverageResult)])
    assert refused(await group.average(1.0, 30 * FACTOR, fails_for=bad)) == {bad}
    assert not refused(await group.average(100 * FACTOR, 300 * FACTOR)), "both have grown"


async def test_one_that_says_another_sum_of_its_share_is_named_by_those_that_hear_it(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = [await start_peer() for _ in range(3)]
    group, bad = Group(peers, ("int8", 0)), peers[2].id
    share_of = all_reduce_round.Round._share_of

    def multiplied(self: all_reduce_round.Round, batch: Batch, parts: dict[int, Parts]) -> bytearray:
        payload = share_of(self, batch, parts)
        if self._rpc.peer_id != bad:
            return payload
        read = all_reduce_round.unpack_parts(payload, batch, self._codec)
        return bytearray(pack_parts([part * 30 * RESULT_FACTOR for part in read], self._codec))

    monkeypatch.setattr(all_reduce_round.Round, "_share_of", multiplied)
    outcomes = await group.average(1.0, 1.0, 1.0, fails_for=bad)
    assert outcomes and all(refused([outcome]) == {bad} for outcome in outcomes)
    after = await group.average(1.0, 1.0, 1.0, weights=(1.0, 1.0, 0.0), left_out=(bad,))
    assert_equal_bits([outcome for outcome in after if isinstance(outcome, AverageResult)])
    assert len(after) == 3 and not refused(after), "it has no share to sum up"


async def test_a_part_that_is_not_finite_is_refused_like_one_too_large(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    averager = Averager(a.rpc)
    group = AveragingGroup("run/1/0/1", (a.id, b.id), (1.0, 1.0))
    waiting = asyncio.create_task(averager.average(group, gradient(0, 1.0), DEADLINE_S))
    round_ = None
    async with asyncio.timeout(DEADLINE_S):
        while round_ is None:
            await asyncio.sleep(0)
            round_ = averager._rounds.get(group.group_id)
    payload = b"\xff" * round_.bytes_of(("part", 1, 0))
    header = {"kind": "average", "group": group.group_id, "phase": "part", "batch": 0}
    await b.rpc.push(a.id, header, payload, DEADLINE_S, eager=False)
    with pytest.raises(AveragingFailed, match="not finite") as failed:
        await waiting
    assert failed.value.peer == b.id and failed.value.refused


def test_a_member_that_is_left_out_weighs_nothing() -> None:
    with pytest.raises(ValueError, match="left_out"):
        AveragingGroup("g", (PeerId("a"), PeerId("b")), (1.0, 1.0), left_out=(PeerId("b"),))
