"""Parts of tensors on their way through an average: cutting into batches, bytes and back, the sum itself, and
what rounding takes.

Pure functions; the long ones are meant for a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.tensor_formats import TensorFormat
from gwtf_p2p.training.codecs.codec import Codec
from gwtf_p2p.training.compute.values import Gradient, Shapes, spans, values_in
from gwtf_p2p.training.state.scratch import Scratch, ScratchGradient

BATCH_BYTES = 4 << 20
_MIN_PART_BYTES, _MAX_PART_BYTES = 1 << 14, 1 << 19
_FP32_BYTES = 4

Parts = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Values `start` to `stop` of one tensor."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many values."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive parts of one member's share, sent as one payload."""

    span: slice
    sizes: tuple[int, ...]

    @property
    def float_bytes(self) -> int:
        """Size of the parts in float32: how much work they are."""
        return _FP32_BYTES * sum(self.sizes)

    def encoded_bytes(self, form: TensorFormat) -> int:
        """Size of the payload."""
        return sum(form.encoded_bytes(size) for size in self.sizes)


def part_bytes(total_values: int, members: int) -> int:
    """Size of the parts that the tensors are cut into: small enough that the shares come out about as intended."""
    return max(_MIN_PART_BYTES, min(_MAX_PART_BYTES, _FP32_BYTES * total_values // (4 * members)))


def parts_of(shapes: Shapes, members: int) -> list[Part]:
    """The tensors one behind the other, in parts for so many members, none of two tensors."""
    most = part_bytes(sum(values_in(shape) for shape in shapes.values()), members) // _FP32_BYTES
    return [
        Part(name, start, stop)
        for name, shape in shapes.items()
        for start, stop in (spans(values_in(shape), most) if values_in(shape) else ((0, 0),))
    ]


def dealt(parts: Sequence[Part], fractions: Sequence[float]) -> list[list[Part]]:
    """Consecutive parts in shares of these proportions, one for each member.

    Shares meet where hivemind's `TensorPartContainer` has them meet, with which members of older releases cut: a part on the
    border goes to the member whose share has most of it.
    """
    total = sum(part.size for part in parts)
    borders = (np.cumsum(fractions) / np.sum(fractions) * total).astype(np.int64)
    borders[-1] = total
    shares: list[list[Part]] = [[] for _ in fractions]
    at = member = 0
    for part in parts:
        end, first = at + part.size, member
        inside = [int(borders[member]) - at]
        while end > borders[member]:
            member += 1
            inside.append(min(end, int(borders[member])) - int(borders[member - 1]))
        shares[first + int(np.argmax(inside)) if member > first else member].append(part)
        at = end
    return shares


def cut(shapes: Shapes, fractions: Sequence[float]) -> list[list[Part]]:
    """The tensors in shares of these proportions, one for each member."""
    return dealt(parts_of(shapes, len(fractions)), fractions)


def batches_of(sizes: Sequence[int]) -> list[Batch]:
    """Cut a share whose parts have so many values into batches of about `BATCH_BYTES`; all members cut alike."""
    batches = []
    start, held = 0, 0
    for end, size in enumerate(sizes, start=1):
        held += _FP32_BYTES * size
        if held >= BATCH_BYTES or end == len(sizes):
            batches.append(Batch(slice(start, end), tuple(sizes[start:end])))
            start, held = end, 0
    return batches


def average_parts(contributions: Sequence[tuple[float, Sequence[torch.Tensor]]]) -> tuple[torch.Tensor, ...]:
    """Weighted mean of each part, summed in the given order in fp32, so that the bits depend on the order alone."""
    total = sum(weight for weight, _ in contributions)
    sums = [torch.zeros_like(part) for part in contributions[0][1]]
    for weight, parts in contributions:
        for accumulator, part in zip(sums, parts, strict=True):
            accumulator.add_(part, alpha=weight)
    return tuple(accumulator.div_(total) for accumulator in sums)


def squares_of(parts: Sequence[torch.Tensor]) -> float:
    """The sum of the squares of all values; infinite where float32 does not hold the root of a part's."""
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float32)) ** 2 for part in parts)


def pack_parts(parts: Sequence[torch.Tensor], codec: Codec) -> bytes:
    """The parts, each as the codec writes it, one behind the other. Raises NotFiniteError."""
    return b"".join(codec.encode(part) for part in parts)


def unpack_parts(payload: memoryview | bytes, batch: Batch, codec: Codec) -> tuple[torch.Tensor, ...]:
    """Float32 parts. Raises RemoteProtocolError unless the payload is exactly this batch, in this codec."""
    view, parts, start = memoryview(payload), [], 0
    if len(view) != batch.encoded_bytes(codec.form):
        raise RemoteProtocolError(f"{len(view)} bytes where {batch.encoded_bytes(codec.form)} are due")
    for size in batch.sizes:
        end = start + codec.form.encoded_bytes(size)
        parts.append(codec.decode(view[start:end], (size,)).float())
        start = end
    return tuple(parts)


class Told:
    """Consecutive parts in the bytes in which they were told, kept to be passed on."""

    def __init__(self, parts: Sequence[Part], form: TensorFormat, folder: Path | None) -> None:
        self._form, self._at, size = form, {}, 0
        for part in parts:
            self._at[part.name, part.start] = size
            size += form.encoded_bytes(part.size)
        self._scratch = Scratch(size, folder)

    def put(self, places: Sequence[Part], payload: memoryview | bytes | bytearray) -> None:
        """What was told of these, which are consecutive. Raises OSError."""
        self._scratch.write(self._at[places[0].name, places[0].start], memoryview(payload))

    def read(self, places: Sequence[Part]) -> bytearray:
        """The bytes of these, all of which have been put. Raises OSError."""
        size = sum(self._form.encoded_bytes(place.size) for place in places)
        return self._scratch.read(self._at[places[0].name, places[0].start], size)


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a member of this weight contributes: its own mean gradient, and what rounding still owes (see `Residual`)."""

    own: Gradient
    owed: Gradient
    weight: float

    @property
    def shapes(self) -> Shapes:
        """See `values.Gradient`."""
        return self.own.shapes

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `values.Gradient`."""
        return self.own.piece(name, start, stop) + self.owed.piece(name, start, stop) / self.weight


class Residual:
    """What rounding takes from one average at one member, to be added to what the member contributes to its next.

    It is measured in gradient x weight, so that it means the same in a group of other weights: a member's pieces lose
    `weight x (piece - rounded piece)`, the share that it sums up `total weight x (mean - rounded mean)` (error feedback, Seide
    et al. 2014; both directions as in DoubleSqueeze, arXiv 1905.05957).
    """

    def __init__(self, gradient: ScratchGradient) -> None:
        self.gradient = gradient

    def lost(self, places: Sequence[Part], parts: Parts, rounded: Parts, weight: float) -> None:
        """The parts of these places are counted as `rounded`, with this weight. Raises OSError."""
        for place, part, seen in zip(places, parts, rounded, strict=True):
            self.gradient.put(place.name, place.start, torch.sub(part, seen).mul_(weight))

    def unpaid(self, former: Gradient | None) -> None:
        """This member contributes nothing, so what was owed before still is. Raises OSError."""
        if former is None:
            return
        for name, shape in self.gradient.shapes.items():
            for start, stop in spans(values_in(shape)):
                owed = self.gradient.piece(name, start, stop) + former.piece(name, start, stop)
                self.gradient.put(name, start, owed)
