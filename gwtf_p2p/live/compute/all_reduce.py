"""The average of a stage group: every member ends with the same bits, or the attempt fails as a whole.

Who averages, with which weights, under which name, is decided by the protocol; this module only does it. It is a butterfly
all-reduce: the tensors are cut into as many shares as there are members, in proportion to their line speeds; each member sends
every other one its piece of that one's share, sums up its own share, and sends the result to all.

hivemind's `TensorPartContainer` is used, its `AllReduceRunner` is not, for two reasons. It returns the
*difference* to each member's own tensors, so members end with different last bits, and weights that should be equal drift
apart. And it leaves a member that fails out of the sum without saying so: a gradient that the protocol has counted would be
lost. Here
- each share is summed by one member, in the order of the group, and all members, the summing one too, decode the same bytes;
- whatever goes wrong raises AveragingFailed, with the peer to blame, and the inputs are untouched, so the protocol can try
  again with another group. That all members succeeded is for the protocol to find out (it compares the digests before it
  commits).

Members need not start at the same moment: a member that has not heard of the group yet refuses, and is asked again, at once
when it sends something of its own. To a member that has, payloads go without waiting for its verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from gwtf_p2p.live.compute.all_reduce_parts import (
    Batch,
    Parts,
    Residual,
    average_parts,
    batches_of,
    corrected,
    cut,
    pack_parts,
    pieces_of,
    unpack_parts,
)
from gwtf_p2p.live.compute.averaging_group import AverageResult as AverageResult
from gwtf_p2p.live.compute.averaging_group import AveragingFailed as AveragingFailed
from gwtf_p2p.live.compute.averaging_group import AveragingGroup as AveragingGroup
from gwtf_p2p.live.rpc.api import DataPlane, Header, PushFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32, LOW_RANK
from gwtf_p2p.training.codecs.codec import Codec, NotFiniteError
from gwtf_p2p.training.codecs.low_rank import LowRank
from gwtf_p2p.training.codecs.table import codec_of

KIND = "average"
_PUSH_S = 60.0
_ASK_AGAIN_S = (0.02, 0.5)
_NOT_YET = "not in this group yet"
_REMEMBERED = 64
"""Groups that others have begun and this peer has not heard of."""

_INLINE_BYTES = 1 << 18
"""Smaller work is done at once: it takes less than handing it to a thread and back, which on a busy machine waits twice."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one or two rounds: the average, what it took, and what this member is owed."""

    tensors: list[torch.Tensor]
    sent_bytes: int
    owed: list[torch.Tensor]


class Averager:
    """Takes part in averages over one `Rpc`. Several groups at a time do not disturb each other."""

    def __init__(self, rpc: DataPlane, codec: str = "float32", rank: int = 0) -> None:
        """The codec (`tensor_formats.AVERAGES`) is for transfers only and the run's; sums are in fp32. `rank` is that of the
        products (`LOW_RANK`)."""
        self._rpc = rpc
        self._rank = rank if codec == LOW_RANK else 0
        self._codec = codec_of(FLOAT32.name if self._rank else codec, field="wire.averages")
        self._under_way: dict[str, AveragingGroup] = {}
        self._lost: dict[str, AveragingFailed] = {}
        self._rounds: dict[str, _Round] = {}
        self._begun_elsewhere: OrderedDict[str, set[PeerId]] = OrderedDict()
        rpc.add_service(KIND, self)

    async def average(
        self,
        group: AveragingGroup,
        tensors: Sequence[torch.Tensor],
        deadline_s: float,
        residual: Sequence[torch.Tensor] = (),
    ) -> AverageResult:
        """The weighted mean of the members' tensors. The inputs must not change meanwhile. Raises AveragingFailed.

        `residual` is that of this member's last average that was taken; whatever becomes of this one, it is not changed.
        Cancelling it withdraws this member; the others then fail by their deadline, or when they are cancelled too.
        """
        start_s = time.perf_counter()
        own = [tensor.detach().to("cpu", torch.float32).contiguous() for tensor in tensors]
        own = corrected(own, residual, group.weights[group.members.index(self._rpc.peer_id)])
        if len(group.members) == 1:
            return AverageResult(own, await _digest_of(own), 0, time.perf_counter() - start_s)
        if group.group_id in self._under_way:
            raise AveragingFailed(None, "an average of this name is still ending here")
        self._under_way[group.group_id] = group
        try:
            if self._rank:
                outcome = await self._in_two_rounds(group, own, deadline_s, residual)
            else:
                outcome = await self._all_reduce(group, own, deadline_s, residual)
        finally:
            del self._under_way[group.group_id]
            self._lost.pop(group.group_id, None)
        seconds = time.perf_counter() - start_s
        return AverageResult(outcome.tensors, await _digest_of(outcome.tensors), outcome.sent_bytes, seconds, outcome.owed)

    async def _all_reduce(
        self, group: AveragingGroup, own: list[torch.Tensor], deadline_s: float, residual: Sequence[torch.Tensor] = ()
    ) -> _Outcome:
        round_ = _Round(self._rpc, group, own, self._codec)
        self._rounds[group.group_id] = round_
        for member in self._begun_elsewhere.pop(group.group_id, set()):
            if member in round_.begun:
                round_.begun[member].set()
        try:
            results = await round_.run(deadline_s)
        finally:
            del self._rounds[group.group_id]
            round_.container.finalize()
        return _Outcome(results, round_.sent_bytes, round_.owed(residual))

    async def _in_two_rounds(
        self, group: AveragingGroup, own: list[torch.Tensor], deadline_s: float, residual: Sequence[torch.Tensor]
    ) -> _Outcome:
        """As products of thin matrices (`low_rank`); both rounds are one attempt."""
        start_s, size = time.perf_counter(), sum(tensor.nbytes for tensor in own)
        weight = group.weights[group.members.index(self._rpc.peer_id)]
        plan = LowRank.of(own, self._rank)
        given = await _work(size, lambda: plan.first(own, group.group_id))
        firsts = await self._all_reduce(replace(group, group_id=f"{group.group_id}/1"), given, deadline_s)
        if not plan.products:
            return _Outcome(firsts.tensors, firsts.sent_bytes, list(residual) if weight <= 0 else [])
        bases = await _work(size, lambda: plan.bases(firsts.tensors))
        mine = await _work(size, lambda: plan.second(own, bases))
        if group.group_id in self._lost:
            raise self._lost[group.group_id]
        left_s = deadline_s - (time.perf_counter() - start_s)
        seconds = await self._all_reduce(replace(group, group_id=f"{group.group_id}/2"), mine, left_s)
        results = await _work(size, lambda: plan.result(firsts.tensors, bases, seconds.tensors))
        owed = list(residual)
        if weight > 0:
            owed = [tensor * weight for tensor in await _work(size, lambda: plan.left_over(own, bases, mine))]
        return _Outcome(results, firsts.sent_bytes + seconds.sent_bytes, owed)

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """A peer is known to be gone: averages that need it fail now instead of at their deadline."""
        for round_ in list(self._rounds.values()):
            if peer in round_.group.members:
                round_.fail(AveragingFailed(peer, reason))
        for name, group in self._under_way.items():
            if peer in group.members:  # perhaps between two rounds
                self._lost.setdefault(name, AveragingFailed(peer, reason))

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        group = str(header.get("group"))
        round_ = self._rounds.get(group)
        if round_ is None:
            self._begun_elsewhere.setdefault(group, set()).add(sender)
            while len(self._begun_elsewhere) > _REMEMBERED:
                self._begun_elsewhere.popitem(last=False)
            return {"accepted": False, "reason": _NOT_YET}
        key = round_.key_of(sender, header)
        due = round_.bytes_of(key)
        if payload_bytes != due:
            raise RemoteProtocolError(f"{payload_bytes} bytes where {due} are due")
        if round_.expected[key].done():
            raise RemoteProtocolError("sent twice")
        round_.begun[sender].set()
        return {"accepted": True}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        round_ = self._rounds.get(str(header.get("group")))
        if round_ is None:
            raise RemoteProtocolError("this average has ended")
        future = round_.expected[round_.key_of(sender, header)]
        if not future.done():
            future.set_result(payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing to do: the sender knows, and fails or sends again."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("an average has no calls")


Key = tuple[str, int, int]
"""What comes (`part`: a member's piece of our share, `result`: a member's finished share), from which member, which batch."""


class _Round:
    """One attempt at one member."""

    def __init__(self, rpc: DataPlane, group: AveragingGroup, own: list[torch.Tensor], codec: Codec) -> None:
        if rpc.peer_id not in group.members:
            raise ValueError(f"{rpc.peer_id} is no member of {group.group_id}")
        self.group = group
        self.sent_bytes = 0
        self._rpc = rpc
        self._me = group.members.index(rpc.peer_id)
        self._others = [i for i in range(len(group.members)) if i != self._me]
        self._codec = codec
        self.container = cut(own, group.fractions)
        self._pieces = pieces_of(self.container)
        self._residual = Residual(own, group.fractions) if codec.form.scale_bytes else None
        self._batches = [batches_of(pieces) for pieces in self._pieces]
        loop = asyncio.get_running_loop()
        self.expected: dict[Key, asyncio.Future[memoryview]] = {
            (phase, i, b): loop.create_future()
            for i in self._others
            for phase, share in (("part", self._me), ("result", i))
            if phase == "result" or group.weights[i] > 0
            for b in range(len(self._batches[share]))
        }
        self.begun = {member: asyncio.Event() for member in group.members}
        self._failure: AveragingFailed | None = None
        self._work: asyncio.Task[list[torch.Tensor]] | None = None

    def key_of(self, sender: PeerId, header: Header) -> Key:
        """Raises RemoteProtocolError when nothing of the kind is due from the sender."""
        member = self.group.members.index(sender) if sender in self.group.members else -1
        batch = header.get("batch")
        key = (str(header.get("phase")), member, batch if isinstance(batch, int) else -1)
        if key not in self.expected:
            raise RemoteProtocolError(f"{key[0]:.10} {batch!r:.20} is not due from this peer")
        return key

    def bytes_of(self, key: Key) -> int:
        """How large this payload is."""
        return self._batch(key).encoded_bytes(self._codec.form)

    def owed(self, before: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What rounding has taken from this member; `before`: what it had taken in earlier averages."""
        if self._residual is None:
            return []
        if self.group.weights[self._me] <= 0:
            self._residual.unpaid(before)
        return self._residual.tensors

    def fail(self, failure: AveragingFailed) -> None:
        if self._failure is None and self._work is not None:
            self._failure = failure
            self._work.cancel()

    async def run(self, deadline_s: float) -> list[torch.Tensor]:
        """Raises AveragingFailed."""
        self._work = asyncio.get_running_loop().create_task(self._run())
        try:
            async with asyncio.timeout(deadline_s):
                return await self._work
        except TimeoutError as error:
            raise AveragingFailed(self._first_missing(), f"nothing came within {deadline_s:.0f} s") from error
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            raise

    async def _run(self) -> list[torch.Tensor]:
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.group.weights[self._me] > 0:
                    for other in self._others:
                        tasks.create_task(self._send_pieces(other))
                tasks.create_task(self._sum_up(tasks))
                collecting = tasks.create_task(self._collect())
        except ExceptionGroup as failures:
            first = failures.exceptions[0]
            if isinstance(first, AveragingFailed):
                raise first from None
            raise
        return collecting.result()

    async def _send_pieces(self, to: int) -> None:
        for number, batch in enumerate(self._batches[to]):
            parts, weight = self._pieces[to][batch.span], self.group.weights[self._me]
            payload, _ = await _work(batch.float_bytes, partial(self._rounded, to, batch, parts, weight))
            await self._push(to, "part", number, payload)

    async def _sum_up(self, tasks: asyncio.TaskGroup) -> None:
        """Average our own share, batch by batch, and send each to all."""
        weights = self.group.weights
        for number, batch in enumerate(self._batches[self._me]):
            contributions: list[tuple[float, tuple[torch.Tensor, ...]]] = []
            for member, weight in enumerate(weights):
                if weight > 0 and member == self._me:
                    contributions.append((weight, self._pieces[self._me][batch.span]))
                elif weight > 0:
                    contributions.append((weight, await self._arrived(("part", member, number))))
            payload, parts = await _work(batch.float_bytes * len(contributions), partial(self._share_of, batch, contributions))
            self._register(self._me, batch, parts)
            for other in self._others:
                tasks.create_task(self._push(other, "result", number, payload))

    def _share_of(
        self, batch: Batch, contributions: Sequence[tuple[float, tuple[torch.Tensor, ...]]]
    ) -> tuple[bytes, tuple[torch.Tensor, ...]]:
        """Our finished batch as all others get it, and as they decode it."""
        payload, rounded = self._rounded(self._me, batch, average_parts(contributions), sum(self.group.weights))
        return payload, unpack_parts(payload, batch, self._codec) if rounded is None else rounded

    def _rounded(self, member: int, batch: Batch, parts: Parts, weight: float) -> tuple[bytes, Parts | None]:
        """The payload of parts of a member's share; what it is read as, if rounding is made up for. Raises AveragingFailed."""
        try:
            payload = pack_parts(parts, self._codec)
        except NotFiniteError as error:
            raise AveragingFailed(self._rpc.peer_id, str(error)) from error
        if self._residual is None:
            return payload, None
        rounded = unpack_parts(payload, batch, self._codec)
        self._residual.lost(member, batch.span, parts, rounded, weight)
        return payload, rounded

    async def _collect(self) -> list[torch.Tensor]:
        for other in self._others:
            for number, batch in enumerate(self._batches[other]):
                self._register(other, batch, await self._arrived(("result", other, number)))
        return [tensor async for tensor in self.container.iterate_output_tensors()]

    def _register(self, member: int, batch: Batch, parts: tuple[torch.Tensor, ...]) -> None:
        for offset, part in enumerate(parts):
            self.container.register_processed_part(member, batch.span.start + offset, part)

    async def _arrived(self, key: Key) -> tuple[torch.Tensor, ...]:
        payload, batch = await self.expected[key], self._batch(key)
        try:
            return await _work(len(payload), lambda: unpack_parts(payload, batch, self._codec))
        except RemoteProtocolError as error:
            raise AveragingFailed(self.group.members[key[1]], str(error)) from error

    async def _push(self, to: int, phase: str, batch: int, payload: bytes) -> None:
        """Until it is taken. As the other may not have heard of the group yet, the payload waits for the first verdict."""
        peer = self.group.members[to]
        header = {"kind": KIND, "group": self.group.group_id, "phase": phase, "batch": batch}
        wait_s, longest_s = _ASK_AGAIN_S
        begun = self.begun[peer]
        while True:
            expected = begun.is_set()
            try:
                result = await self._rpc.push(peer, header, payload, _PUSH_S, eager=expected)
            except PushFailed as error:
                raise AveragingFailed(peer, f"{phase}: {error.kind.value}: {error.reason}") from error
            self.sent_bytes += result.sent_bytes
            if result.accepted:
                begun.set()
                return
            if result.reply.get("reason") != _NOT_YET:
                raise AveragingFailed(peer, f"{phase} refused: {result.reply.get('reason')!r:.200}")
            if expected:
                begun.clear()  # it has left this group, or it will say so
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await begun.wait()
            wait_s = min(2 * wait_s, longest_s)

    def _batch(self, key: Key) -> Batch:
        phase, member, number = key
        return self._batches[self._me if phase == "part" else member][number]

    def _first_missing(self) -> PeerId | None:
        """The first member that still owes us something. Parts come first: a result can be late because of another's part."""
        missing = sorted(key for key, future in self.expected.items() if not future.done() or future.cancelled())
        return self.group.members[missing[0][1]] if missing else None


async def _work(size: int, function: Callable[[], T]) -> T:
    """In a thread, unless it is about few bytes."""
    return function() if size <= _INLINE_BYTES else await asyncio.to_thread(function)


async def _digest_of(tensors: Sequence[torch.Tensor]) -> str:
    return await _work(sum(tensor.nbytes for tensor in tensors), lambda: _digest(tensors))


def _digest(tensors: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().reshape(-1).view("uint8").data)
    return digest.hexdigest()
