"""The average of a stage group: every member ends with the same bits, or the attempt fails as a whole.

Who averages, with which weights, under which name, is decided by the protocol; this module only does it. It is a butterfly
all-reduce: the tensors are cut into as many shares as there are members, in proportion to their line speeds; each member sends
every other one its piece of that one's share, sums up its own share, and sends the result to all. Larger groups do so in rows,
and across them (`protocol/averages/rows`).

hivemind's `AllReduceRunner` is not used, for two reasons. It returns the *difference* to each member's own tensors, so members
end with different last bits, and weights that should be equal drift apart. And it leaves a member that fails out of the sum
without saying so: a gradient that the protocol has counted would be lost. Here
- each share is summed by one member, in the order of the group, and all members, the summing one too, decode the same bytes;
- whatever goes wrong raises AveragingFailed, with the peer to blame, and the inputs are untouched, so the protocol can try
  again with another group. That all members succeeded is for the protocol to find out (it compares the digests before it
  commits).

Members need not start at the same moment: a member that has not heard of the group yet refuses, and is asked again, at once
when it sends something of its own. To a member that has, payloads go without waiting for its verdict.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gwtf_p2p.live.compute.all_reduce_parts import Corrected, Part, Residual, Told, cut, dealt, parts_of, squares_of
from gwtf_p2p.live.compute.all_reduce_round import ENDED, KIND, NOT_YET, Round, RoundInRow, disk_errors, in_thread
from gwtf_p2p.live.compute.averaging_group import AverageResult as AverageResult
from gwtf_p2p.live.compute.averaging_group import AveragingFailed as AveragingFailed
from gwtf_p2p.live.compute.averaging_group import AveragingGroup as AveragingGroup
from gwtf_p2p.live.compute.averaging_group import Circle
from gwtf_p2p.live.rpc.api import DataPlane, Header
from gwtf_p2p.protocol.averages.rows import rows_of
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.parts import PartBound, PartSizes, root_mean_square
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32, LOW_RANK
from gwtf_p2p.training.codecs.low_rank import LowRank
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes
from gwtf_p2p.training.compute.values import PIECE_VALUES, Gradient, HeldGradient, Shapes, spans, values_in, whole
from gwtf_p2p.training.state.scratch import ScratchGradient, scratch_folder

_FIRST, _SECOND = "/1", "/2"
"""What the names of the two rounds of a product end with."""

_REMEMBERED = 64
"""Groups that others have begun and this peer has not heard of."""


_ACROSS = "across"
"""Names the kind of averages of which the parts are means of rows."""


@dataclass(frozen=True, slots=True)
class _Own:
    """What this member brings: its gradient, whose values have this root mean square, and where the average and what rounding
    takes go. `kind`: of sizes that are compared with each other; `most` average all with all, without those `left_out`."""

    gradient: Gradient
    size: float
    into: tuple[ScratchGradient, Residual | None]
    kind: str
    most: int
    left_out: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Of one or two rounds: the average, what it took, and what this member is owed."""

    gradient: ScratchGradient
    sent_bytes: int
    owed: Gradient | None


class Averager:
    """Takes part in averages over one `Rpc`. Several groups at a time do not disturb each other."""

    def __init__(self, rpc: DataPlane, codec: str = "float32", rank: int = 0, folder: Path | None = None) -> None:
        """The codec (`tensor_formats.AVERAGES`) is for transfers only and the run's; sums are in fp32. `rank` is that of the
        products (`LOW_RANK`). Averages lie in `folder` until they are taken (None: where temporary files go)."""
        self._rpc = rpc
        self._folder = scratch_folder(folder)
        self._rank = rank if codec == LOW_RANK else 0
        self._codec = codec_of(FLOAT32.name if self._rank else codec, field="wire.averages")
        self._under_way: dict[str, AveragingGroup] = {}
        self._lost: dict[str, AveragingFailed] = {}
        self._outermost: dict[str, tuple[AveragingGroup, Round]] = {}
        self._rounds: dict[str, Round] = {}
        self._sizes = PartSizes()
        self._begun_elsewhere: OrderedDict[str, set[PeerId]] = OrderedDict()
        rpc.add_service(KIND, self)

    async def average(
        self, group: AveragingGroup, own: Gradient, deadline_s: float, residual: Gradient | None = None
    ) -> AverageResult:
        """The weighted mean of the members' gradients. The own one must not change meanwhile. Raises AveragingFailed.

        `residual` is that of this member's last average that was taken; whatever becomes of this one, it is not changed.
        Cancelling it withdraws this member; the others then fail by their deadline, or when they are cancelled too.
        """
        start_s = time.perf_counter()
        weight = group.weights[group.members.index(self._rpc.peer_id)]
        if residual is not None and weight > 0:
            own = Corrected(own, residual, weight)
        if len(group.members) == 1:
            alone = await self.kept(own)
            return AverageResult(alone, await self._digest_of(alone), 0, time.perf_counter() - start_s)
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
        return AverageResult(
            outcome.gradient, await self._digest_of(outcome.gradient), outcome.sent_bytes, seconds, outcome.owed
        )

    async def kept(self, own: Gradient) -> ScratchGradient:
        """A gradient as it is now, for when it has changed. Raises AveragingFailed."""
        return await in_thread(_bytes_of(own.shapes), partial(self._copy_of, own))

    async def _all_reduce(
        self, group: AveragingGroup, own: Gradient, deadline_s: float, residual: Gradient | None = None
    ) -> _Outcome:
        size = _bytes_of(own.shapes)
        result = await in_thread(size, partial(ScratchGradient, own.shapes, self._folder))
        rounds_away = bool(self._codec.form.scale_bytes)
        lost = Residual(await in_thread(size, partial(ScratchGradient, own.shapes, self._folder))) if rounds_away else None
        me, left_out = self._rpc.peer_id, group.left_out
        round_name = group.group_id[-len(_FIRST) :] if self._rank else ""
        kind = group.of + round_name  # sizes are compared with those of the same
        has_own = group.weights[group.members.index(me)] > 0 or me in left_out
        own_size = await in_thread(size, partial(_size_of, own)) if has_own else 0.0
        brought = _Own(own, own_size, (result, lost), kind, group.all_with_all, left_out)
        round_ = self._round(group, brought)
        self._outermost[group.group_id] = group, round_
        for each in round_.circles:
            self._rounds[each.circle.name] = each
            for member in self._begun_elsewhere.pop(each.circle.name, set()):
                if member in each.begun:
                    each.begun[member].set()
        try:
            await round_.run(deadline_s)
        finally:
            del self._outermost[group.group_id]
            for number, each in enumerate(round_.circles):
                del self._rounds[each.circle.name]
                sizes = {each.circle.members[place]: size for place, size in each.seen.sizes.items()}
                self._sizes.note(kind + _ACROSS * (number > 0), sizes)
        sent_bytes = sum(each.sent_bytes for each in round_.circles)
        if lost is None:
            return _Outcome(result, sent_bytes, None)
        if group.weights[group.members.index(self._rpc.peer_id)] <= 0:
            with disk_errors(self._rpc.peer_id):
                await in_thread(size, partial(lost.unpaid, residual))
        return _Outcome(result, sent_bytes, lost.gradient)

    def _round(self, group: AveragingGroup, own: _Own) -> Round:
        """All of this member's part in it."""
        if rows_of(group.members, own.most, own.left_out) is None:
            shares = cut(own.gradient.shapes, group.fractions)
            return self._all_with_all(group.circle, own, shares, self._bound(group.circle, own))
        return self._in_rows(group.circle, own, parts_of(own.gradient.shapes, len(group.members)))

    def _all_with_all(
        self, circle: Circle, own: _Own, shares: Sequence[Sequence[Part]], bound: PartBound, told: Told | None = None
    ) -> Round:
        return Round(self._rpc, circle, own.gradient, self._codec, own.into, bound, shares=shares, told=told)

    def _in_rows(self, circle: Circle, own: _Own, parts: Sequence[Part], told: Told | None = None) -> Round:
        """Of these parts; all with all where they are few. A row is judged as part of all: who alone brings something to it is
        held to the past."""
        rows, bound = rows_of(circle.members, own.most, own.left_out), self._bound(circle, own)
        if rows is None:
            return self._all_with_all(circle, own, dealt(parts, circle.fractions), bound, told)
        row, lane = rows.row_of(self._rpc.peer_id), rows.lane_of(self._rpc.peer_id)
        weights = dict(zip(circle.members, circle.weights, strict=True))
        shares = [*dealt(parts, (1.0,) * rows.lanes), *([] for _ in row[rows.lanes :])]
        name, brought = f"{circle.name}/row{rows.rows.index(row)}", tuple(weights[member] for member in row)
        in_row = Circle(name, row, brought, tuple(float(place < rows.lanes) for place in range(len(row))))
        if lane is None:
            return self._all_with_all(in_row, own, shares, bound, told)
        column = rows.column(lane)
        owners = Circle(f"{circle.name}/lane{lane}", column, rows.weights_across(weights), (1.0,) * len(column))
        means = replace(own, gradient=own.into[0], kind=own.kind.removesuffix(_ACROSS) + _ACROSS, left_out=())
        round_ = RoundInRow(self._rpc, in_row, own.gradient, self._codec, own.into, bound, shares=shares, told=told)
        round_.across = self._in_rows(owners, means, shares[lane], Told(shares[lane], self._codec.form, self._folder))
        return round_

    def _bound(self, circle: Circle, own: _Own) -> PartBound:
        out = sum(member in own.left_out for member in circle.members)
        return self._sizes.bound(own.kind, own.size, sum(weight > 0 for weight in circle.weights) + out)

    async def _in_two_rounds(
        self, group: AveragingGroup, own: Gradient, deadline_s: float, residual: Gradient | None
    ) -> _Outcome:
        """As products of thin matrices (`low_rank`); both rounds are one attempt. A tensor is read when its turn is."""
        start_s, size, names = time.perf_counter(), _bytes_of(own.shapes), tuple(own.shapes)
        weight = group.weights[group.members.index(self._rpc.peer_id)]
        plan = LowRank(tuple(own.shapes.values()), self._rank)

        def read(number: int) -> torch.Tensor:
            return whole(own, names[number])

        given = await in_thread(size, lambda: plan.first(read, group.group_id))
        first = await self._all_reduce(replace(group, group_id=group.group_id + _FIRST), _numbered(given), deadline_s)
        if not plan.products:
            result = ScratchGradient(own.shapes, self._folder)
            with disk_errors(self._rpc.peer_id):
                await in_thread(size, lambda: _put_all(result, names, enumerate(_listed(first.gradient))))
            return _Outcome(result, first.sent_bytes, residual if weight <= 0 else None)
        firsts = _listed(first.gradient)
        bases = await in_thread(size, lambda: plan.bases(firsts))
        mine = await in_thread(size, lambda: plan.second(read, bases))
        if group.group_id in self._lost:
            raise self._lost[group.group_id]
        left_s = deadline_s - (time.perf_counter() - start_s)
        second = await self._all_reduce(replace(group, group_id=group.group_id + _SECOND), _numbered(mine), left_s)
        seconds = _listed(second.gradient)
        result, owed = (ScratchGradient(own.shapes, self._folder) for _ in range(2))
        with disk_errors(self._rpc.peer_id):
            await in_thread(size, lambda: _put_all(result, names, plan.result(firsts, bases, seconds)))
            if weight > 0:
                rest = ((number, tensor * weight) for number, tensor in plan.left_over(read, bases, mine))
                await in_thread(size, lambda: _put_all(owed, names, rest))
        return _Outcome(result, first.sent_bytes + second.sent_bytes, owed if weight > 0 else residual)

    def _copy_of(self, own: Gradient) -> ScratchGradient:
        copy = ScratchGradient(own.shapes, self._folder)
        with disk_errors(self._rpc.peer_id):
            for name, shape in own.shapes.items():
                for start, stop in spans(values_in(shape)):
                    copy.put(name, start, own.piece(name, start, stop))
        return copy

    async def _digest_of(self, gradient: Gradient) -> str:
        with disk_errors(self._rpc.peer_id):
            return await in_thread(_bytes_of(gradient.shapes), lambda: _digest(gradient))

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        """A peer is known to be gone: averages that need it fail now instead of at their deadline."""
        for group, round_ in list(self._outermost.values()):
            if peer in group.members:
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
            return {"accepted": False, "reason": NOT_YET}
        key = round_.key_of(sender, header)
        due = round_.bytes_of(key)
        if payload_bytes != due:
            raise RemoteProtocolError(f"{payload_bytes} bytes where {due} are due")
        if round_.expected[key].done():
            raise RemoteProtocolError("sent twice")
        round_.begun[sender].set()
        if round_.is_early(key):
            return {"accepted": False, "reason": NOT_YET}
        return {"accepted": True}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        round_ = self._rounds.get(str(header.get("group")))
        if round_ is None:
            raise RemoteProtocolError(ENDED)
        future = round_.expected[round_.key_of(sender, header)]
        if not future.done():
            future.set_result(payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing to do: the sender knows, and fails or sends again."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("an average has no calls")


def _bytes_of(shapes: Shapes) -> int:
    return FLOAT32.encoded_bytes(sum(values_in(shape) for shape in shapes.values()))


def _size_of(gradient: Gradient) -> float:
    """Its root mean square."""
    pieces = ((name, span) for name, shape in gradient.shapes.items() for span in spans(values_in(shape)))
    squares = sum(squares_of((gradient.piece(name, *span),)) for name, span in pieces)
    return root_mean_square(squares, sum(values_in(shape) for shape in gradient.shapes.values()))


def _digest(gradient: Gradient) -> str:
    digest = hashlib.sha256()
    for name, shape in gradient.shapes.items():
        for start, stop in spans(values_in(shape), 8 * PIECE_VALUES):
            digest.update(tensor_bytes(gradient.piece(name, start, stop)))
    return digest.hexdigest()


def _numbered(tensors: Sequence[torch.Tensor]) -> HeldGradient:
    return HeldGradient({str(number): tensor.float().contiguous() for number, tensor in enumerate(tensors)})


def _listed(gradient: Gradient) -> list[torch.Tensor]:
    return [whole(gradient, name) for name in gradient.shapes]


def _put_all(into: ScratchGradient, names: Sequence[str], tensors: Iterable[tuple[int, torch.Tensor]]) -> None:
    for number, tensor in tensors:
        into.put(names[number], 0, tensor.reshape(-1))
