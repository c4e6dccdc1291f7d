"""The average of a stage group: equal bits everywhere, or a named failure and nothing changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from hivemind.averaging.partition import TensorPartContainer
from hivemind.compression import NoCompression

from gwtf_p2p.live.compute import all_reduce_parts
from gwtf_p2p.live.compute.all_reduce import Averager, AverageResult, AveragingFailed, AveragingGroup
from gwtf_p2p.live.compute.all_reduce_parts import (
    BATCH_BYTES,
    average_parts,
    batches_of,
    cut,
    pack_parts,
    part_bytes,
    unpack_parts,
)
from gwtf_p2p.live.compute.all_reduce_round import ENDED, NOT_YET, Key, Round
from gwtf_p2p.live.rpc.api import Header
from gwtf_p2p.live.rpc.rpc import CallFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.tensor_formats import AVERAGE_FORMATS
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.values import Gradient, HeldGradient, all_of
from tests.live.conftest import DEADLINE_S, LivePeer, StartPeer

pytestmark = pytest.mark.live

SHAPES = [(300, 70), (1,), (), (17, 3, 5), (0,), (40_000,)]


def tensors_of(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradient_of(tensors: Sequence[torch.Tensor]) -> HeldGradient:
    return HeldGradient({str(number): tensor for number, tensor in enumerate(tensors)})


def tensors_in(result: AverageResult) -> list[torch.Tensor]:
    return list(all_of(result.gradient).values())


def group_of(peers: Sequence[LivePeer], weights: Sequence[float], speeds: Sequence[float] = ()) -> AveragingGroup:
    return AveragingGroup("run/1/0/0", tuple(peer.id for peer in peers), tuple(weights), tuple(speeds))


async def average_all(
    peers: Sequence[LivePeer], group: AveragingGroup, inputs: Sequence[list[torch.Tensor]], codec: str = "float32"
) -> list[AverageResult]:
    averagers = [Averager(peer.rpc, codec) for peer in peers]
    return list(
        await asyncio.gather(
            *(a.average(group, gradient_of(own), DEADLINE_S) for a, own in zip(averagers, inputs, strict=True))
        )
    )


def assert_equal_bits(results: Sequence[AverageResult]) -> None:
    for result in results:
        assert result.digest == results[0].digest
        for mine, first in zip(tensors_in(result), tensors_in(results[0]), strict=True):
            assert mine.numpy().tobytes() == first.numpy().tobytes()


@pytest.mark.parametrize(
    ("weights", "speeds"), [((1.0, 1.0), ()), ((3.0, 5.0, 0.0), ()), ((2.0, 1.0, 4.0, 1.0), (1e6, 0.0, 9e6, 2e6))]
)
async def test_all_members_get_the_same_bits_and_they_are_the_weighted_mean(
    start_peer: StartPeer, weights: tuple[float, ...], speeds: tuple[float, ...]
) -> None:
    peers = [await start_peer() for _ in weights]
    inputs = [tensors_of(seed) for seed in range(len(peers))]
    before = [[tensor.clone() for tensor in own] for own in inputs]
    results = await average_all(peers, group_of(peers, weights, speeds), inputs)
    assert_equal_bits(results)
    for k, result in enumerate(tensors_in(results[0])):
        exact = sum(w * own[k].double() for w, own in zip(weights, inputs, strict=True)) / sum(weights)
        assert result.shape == inputs[0][k].shape
        torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(x, y) for own, old in zip(inputs, before, strict=True) for x, y in zip(own, old, strict=True))


async def test_float16_halves_the_bytes_and_keeps_the_bits_equal(start_peer: StartPeer) -> None:
    peers = [await start_peer() for _ in range(2)]
    inputs = [tensors_of(seed, [(200_000,)]) for seed in range(2)]
    plain = await average_all(peers, group_of(peers, (1, 1)), inputs)
    for peer in peers:
        peer.rpc._services.clear()
    halved = await average_all(peers, group_of(peers, (1, 1)), inputs, "float16")
    assert_equal_bits(halved)
    assert halved[0].sent_bytes < 0.51 * plain[0].sent_bytes
    torch.testing.assert_close(tensors_in(halved[0])[0], tensors_in(plain[0])[0], rtol=2e-3, atol=2e-3)


async def test_few_bytes_travel_in_vain_to_a_member_that_is_slower(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is early when it is offered first: but for one, they wait for the verdict from then on."""
    offered: set[object] = set()

    def is_early(self: Round, key: Key) -> bool:
        first = (id(self), key) not in offered and key[0] == "part"
        offered.add((id(self), key))
        return first

    monkeypatch.setattr(Round, "is_early", is_early)
    monkeypatch.setattr(all_reduce_parts, "BATCH_BYTES", 1 << 18)
    peers = [await start_peer() for _ in range(2)]
    inputs = [tensors_of(seed, [(1_600_000,)]) for seed in range(2)]
    results = await average_all(peers, group_of(peers, (1, 1)), inputs)
    assert_equal_bits(results)
    batches = [key for _, key in offered if key[0] == "part"]  # type: ignore[misc]
    assert len(batches) >= 10, "many parts, and each was refused once"
    exact, largest = 2 * inputs[0][0].nbytes, all_reduce_parts.part_bytes(1_600_000, 2)
    assert exact <= sum(result.sent_bytes for result in results) <= exact + 2 * largest


async def test_members_may_start_late_and_shares_of_many_batches_arrive_in_order(start_peer: StartPeer) -> None:
    peers = [await start_peer() for _ in range(2)]
    inputs = [tensors_of(seed, [(3_000_000,), (100,)]) for seed in range(2)]
    group = group_of(peers, (1, 3))
    averagers = [Averager(peer.rpc) for peer in peers]
    refused = asyncio.Event()
    refuse = averagers[1].on_offer
    averagers[1].on_offer = lambda *offer: refused.set() or refuse(*offer)  # type: ignore[method-assign,func-returns-value]
    early = asyncio.create_task(averagers[0].average(group, gradient_of(inputs[0]), DEADLINE_S))
    async with asyncio.timeout(DEADLINE_S):
        await refused.wait()
    late = await averagers[1].average(group, gradient_of(inputs[1]), DEADLINE_S)
    assert_equal_bits([await early, late])


async def test_alone_in_the_group_nothing_is_sent(start_peer: StartPeer) -> None:
    peer = await start_peer()
    own = tensors_of(0)
    result = await Averager(peer.rpc).average(group_of([peer], (2.0,)), gradient_of(own), DEADLINE_S)
    assert all(torch.equal(x, y) for x, y in zip(own, tensors_in(result), strict=True))
    assert result.sent_bytes == 0 and len(result.digest) == 64


async def test_a_dead_member_fails_the_attempt_by_name_and_the_next_group_succeeds(start_peer: StartPeer) -> None:
    a, b, c = await start_peer(), await start_peer(), await start_peer()
    inputs = [tensors_of(seed) for seed in range(3)]
    before = [tensor.clone() for tensor in inputs[0]]
    averagers = [Averager(peer.rpc) for peer in (a, b)]
    group = group_of((a, b, c), (1, 1, 1))
    await c.daemon.stop()
    attempts = [averager.average(group, gradient_of(own), DEADLINE_S) for averager, own in zip(averagers, inputs, strict=False)]
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        assert isinstance(outcome, AveragingFailed) and outcome.peer == c.id
    assert all(torch.equal(x, y) for x, y in zip(inputs[0], before, strict=True))
    again = AveragingGroup("run/1/0/1", (a.id, b.id), (1.0, 1.0))
    attempts = [averager.average(again, gradient_of(own), DEADLINE_S) for averager, own in zip(averagers, inputs, strict=False)]
    assert_equal_bits(await asyncio.gather(*attempts))


async def test_a_lost_or_late_member_ends_the_wait(start_peer: StartPeer) -> None:
    """b is alive but never enters the group; the loss of another peer does not matter."""
    a, b, c = await start_peer(), await start_peer(), await start_peer()
    averager, _ = Averager(a.rpc), Averager(b.rpc)
    group = group_of((a, b), (1, 1))
    waiting = asyncio.create_task(averager.average(group, gradient_of(tensors_of(0)), DEADLINE_S))
    await asyncio.sleep(0)
    averager.peer_lost(c.id, "gone")
    averager.peer_lost(b.id, "gone too")
    with pytest.raises(AveragingFailed, match="gone too") as failed:
        await waiting
    assert failed.value.peer == b.id
    with pytest.raises(AveragingFailed, match="nothing came") as failed:
        await averager.average(group, gradient_of(tensors_of(0)), 0.1)
    assert failed.value.peer == b.id


async def test_a_member_that_ended_for_another_one_is_not_blamed(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears that one of the group is lost just as a payload to it is under way."""
    peers = [await start_peer() for _ in range(3)]
    averagers, inputs = [Averager(peer.rpc) for peer in peers], [tensors_of(seed, [(1 << 20,)]) for seed in range(3)]
    lost, told = peers[2].id, asyncio.Event()
    take = Averager.on_delivery

    def hears_of_the_loss(self: Averager, sender: PeerId, header: Header, payload: memoryview) -> None:
        if self is not averagers[1] or sender != peers[0].id:
            take(self, sender, header, payload)
            return
        self.peer_lost(lost, "gone")
        told.set()
        raise RemoteProtocolError(ENDED)

    monkeypatch.setattr(Averager, "on_delivery", hears_of_the_loss)
    group = group_of(peers, [1.0] * 3)
    tasks = [
        asyncio.create_task(averager.average(group, gradient_of(own), DEADLINE_S))
        for averager, own in zip(averagers, inputs, strict=True)
    ]
    async with asyncio.timeout(DEADLINE_S):
        await told.wait()
    with pytest.raises(AveragingFailed, match="gone"):
        await tasks[1]
    done, _ = await asyncio.wait([tasks[0]], timeout=0.3)
    assert not done, "it hears why from the coordinator"
    averagers[0].peer_lost(lost, "gone")
    with pytest.raises(AveragingFailed) as failed:
        await tasks[0]
    assert failed.value.peer == lost
    tasks[2].cancel()


async def test_what_is_not_due_is_refused_and_nonsense_fails_the_attempt(start_peer: StartPeer) -> None:
    a, b, stranger = await start_peer(), await start_peer(), await start_peer()
    averager = Averager(a.rpc)
    group = group_of((a, b), (1, 1))
    waiting = asyncio.create_task(averager.average(group, gradient_of(tensors_of(0)), DEADLINE_S))
    await asyncio.sleep(0)
    header = {"kind": "average", "group": group.group_id, "phase": "part", "batch": 0}

    async def reason_of(sender: LivePeer, changes: dict[str, object], payload: bytes = b"") -> str:
        result = await sender.rpc.push(a.id, {**header, **changes}, payload, DEADLINE_S)
        assert not result.accepted
        return str(result.reply["reason"])

    assert "not due" in await reason_of(stranger, {})
    assert "not due" in await reason_of(b, {"batch": 99})
    assert "not due" in await reason_of(b, {"batch": [1]})
    assert "not due" in await reason_of(b, {"phase": "other"})
    assert "are due" in await reason_of(b, {}, bytes(10_000_000))
    assert "are due" in await reason_of(b, {}, b"nonsense")
    assert "not in this group" in await reason_of(b, {"group": "another"})
    nonsense = b"\xff" * 4 * sum(tensor.numel() for tensor in tensors_of(0))  # so long that its first batch is all of it
    due = averager._rounds[group.group_id].bytes_of(("part", 1, 0))
    assert (await b.rpc.push(a.id, header, nonsense[:due], DEADLINE_S)).accepted
    with pytest.raises(AveragingFailed) as failed:
        await waiting
    assert failed.value.peer == b.id
    assert "not in this group" in await reason_of(b, {})
    with pytest.raises(CallFailed, match="no calls"):
        await b.rpc.call(a.id, {"kind": "average"}, DEADLINE_S)


@pytest.mark.parametrize("name", AVERAGE_FORMATS)
def test_parts_survive_packing_and_anything_else_is_refused(name: str) -> None:
    codec, other = codec_of(name), codec_of("int8" if name == "float32" else "float32")
    parts = tuple(torch.linspace(-1, 1, n) for n in (1, 100, 1000))
    [batch] = batches_of([len(part) for part in parts])
    packed = pack_parts(parts, codec)
    assert len(packed) == batch.encoded_bytes(codec.form)
    back = unpack_parts(packed, batch, codec)
    assert all(torch.allclose(x, y, atol=5e-3) for x, y in zip(parts, back, strict=True))
    not_finite = b"\xff" * len(packed)
    for wrong in (packed[:-1], packed + b"x", pack_parts(parts, other), not_finite, b""):
        with pytest.raises(RemoteProtocolError):
            unpack_parts(wrong, batch, codec)


Rounds = tuple[list[torch.Tensor], list[float], list[AverageResult]]


async def again_and_again(
    peers: Sequence[LivePeer], averagers: Sequence[Averager], inputs: list[list[torch.Tensor]], rounds: int
) -> Rounds:
    """The same gradients averaged so often by peers of the weights 3, 1 and 0, with what each is owed: the sum of the results,
    the error of the mean after each round, and the last results."""
    weights = (3.0, 1.0, 0.0)
    owed: list[Gradient | None] = [None for _ in peers]
    exact = [(3.0 * inputs[0][k] + inputs[1][k]) / 4.0 for k in range(len(inputs[0]))]
    total, errors = [torch.zeros_like(tensor) for tensor in exact], []
    results: list[AverageResult] = []
    for attempt in range(rounds):
        group = AveragingGroup(f"run/1/{attempt}/0", tuple(peer.id for peer in peers), weights)
        members = zip(averagers, inputs, owed, strict=True)
        results = await asyncio.gather(
            *(a.average(group, gradient_of(own), DEADLINE_S, residual) for a, own, residual in members)
        )
        assert_equal_bits(results)
        owed = [result.residual for result in results]
        total = [tensor + mean for tensor, mean in zip(total, tensors_in(results[0]), strict=True)]
        errors.append(norm_of(total[k] / (attempt + 1) - exact[k] for k in range(len(exact))))
    return total, errors, results


async def test_int8_quarters_the_bytes_and_what_rounding_takes_is_made_up_for(start_peer: StartPeer) -> None:
    """Averaged again and again, the same gradients add up to what they are in float32: nothing is lost for good."""
    peers = [await start_peer() for _ in range(3)]
    averagers = [Averager(peer.rpc, "int8") for peer in peers]
    total, errors, results = await again_and_again(peers, averagers, [tensors_of(seed) for seed in range(3)], rounds=12)
    assert errors[-1] < errors[0] / 4
    sent = sum(result.sent_bytes for result in results)
    values = sum(tensor.numel() for tensor in total)
    assert sent < 0.27 * 4 * values * 10 / 3, "two members send two thirds each, all three a third to two others"


async def test_numbers_that_are_not_finite_fail_the_attempt_of_their_owner(start_peer: StartPeer) -> None:
    peers = [await start_peer() for _ in range(2)]
    inputs = [tensors_of(seed) for seed in range(2)]
    for own in inputs[1]:
        own.fill_(float("nan"))
    group = group_of(peers, (1, 1))
    averagers = [Averager(peer.rpc, "int8") for peer in peers]
    attempts = [averager.average(group, gradient_of(own), 1.0) for averager, own in zip(averagers, inputs, strict=True)]
    for outcome in await asyncio.gather(*attempts, return_exceptions=True):
        assert isinstance(outcome, AveragingFailed) and outcome.peer == peers[1].id


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([tensor.reshape(-1) for tensor in tensors]).norm())


def test_batches_and_part_sizes_depend_on_sizes_alone() -> None:
    assert [batch.span for batch in batches_of([1_000_000, 200_000, 5, 1_100_000])] == [slice(0, 2), slice(2, 4)]
    assert batches_of([]) == []
    assert part_bytes(10, 3) == 1 << 14 and part_bytes(10**9, 3) == 1 << 19


def test_the_order_of_summing_is_the_given_one() -> None:
    """Bits depend on the order; two members that sum in different orders would differ."""
    parts = [torch.tensor([x], dtype=torch.float32) for x in (1e8, 1.0, -1e8)]
    forth = average_parts([(1.0, [part]) for part in parts])
    back = average_parts([(1.0, [part]) for part in reversed(parts)])
    expected = (np.float32(1e8) + np.float32(1.0) + np.float32(-1e8)) / np.float32(3)
    assert forth[0].item() == expected
    assert average_parts([(2.0, [torch.ones(3)]), (6.0, [torch.zeros(3)])])[0].tolist() == [0.25] * 3
    assert back[0].shape == (1,)


@pytest.mark.parametrize(
    ("members", "weights", "speeds"),
    [("aa", (1, 1), ()), ("", (), ()), ("ab", (1,), ()), ("ab", (0, 0), ()), ("a", (-1,), ()), ("a", (1,), (1, 2))],
)
def test_impossible_groups_are_our_own_mistake(members: str, weights: tuple[float, ...], speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"members|weights|line_bytes"):
        AveragingGroup("g", tuple(PeerId(m) for m in members), weights, speeds)


@pytest.mark.parametrize("seed", range(30))
def test_shares_meet_where_older_releases_have_them_meet(seed: int) -> None:
    """They cut with hivemind's container; a member that cut elsewhere would send what is not due."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(int(n) for n in rng.integers(0, 400, rng.integers(0, 3))) for _ in range(rng.integers(1, 9))]
    fractions = tuple(float(x) for x in rng.choice([0.5, 1.0, 7.0, 1e6], rng.integers(1, 6)))
    tensors = [torch.arange(int(np.prod(shape, dtype=np.int64)), dtype=torch.float32).reshape(shape) for shape in shapes]
    size = part_bytes(sum(tensor.numel() for tensor in tensors), len(fractions))
    container = TensorPartContainer(tensors, fractions, NoCompression(), size, return_deltas=False)
    shares = cut({str(number): shape for number, shape in enumerate(shapes)}, fractions)
    for member, share in enumerate(shares):
        theirs = container.get_raw_input_parts(member)
        ours = [tensors[int(part.name)].reshape(-1)[part.start : part.stop] for part in share]
        assert [part.data_ptr() for part in ours if len(part)] == [part.data_ptr() for part in theirs if len(part)]
        assert [len(part) for part in ours] == [len(part) for part in theirs]
    container.finalize()


async def test_parts_that_come_faster_than_the_others_wait_for_their_turn(start_peer: StartPeer) -> None:
    """Else all that fast members send would lie in memory until the slowest has sent its own."""
    a, b, c = await start_peer(), await start_peer(), await start_peer()
    own = gradient_of(tensors_of(0, [(12_000_000,)]))
    averager, group = Averager(a.rpc), group_of((a, b, c), (1, 1, 1))
    waiting = asyncio.create_task(averager.average(group, own, DEADLINE_S))
    header = {"kind": "average", "group": group.group_id, "phase": "part"}

    async def taken(sender: LivePeer, batch: int) -> bool:
        result = await sender.rpc.push(a.id, {**header, "batch": batch}, bytes(BATCH_BYTES), DEADLINE_S)
        return result.accepted or str(result.reply["reason"]) != NOT_YET

    async with asyncio.timeout(DEADLINE_S):
        while not await taken(b, 0):
            pass  # it is not in the group yet
        assert [await taken(b, batch) for batch in (1, 2)] == [True, False]
        assert await taken(c, 0)
        while not await taken(b, 2):
            pass  # the first batch is being summed: then the third's turn has come
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
