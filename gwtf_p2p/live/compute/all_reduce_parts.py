"""Parts of tensors on their way through an average: cutting into batches, bytes and back, the sum itself, and
what rounding takes.

Pure functions; the long ones are meant for a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hivemind.averaging.partition import TensorPartContainer
from hivemind.compression import NoCompression

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.tensor_formats import TensorFormat
from gwtf_p2p.training.codecs.codec import Codec

BATCH_BYTES = 4 << 20
_MIN_PART_BYTES, _MAX_PART_BYTES = 1 << 14, 1 << 19
_FP32_BYTES = 4

Parts = tuple[torch.Tensor, ...]


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


def cut(tensors: list[torch.Tensor], fractions: Sequence[float]) -> TensorPartContainer:
    """The tensors in shares of these proportions, one for each member."""
    size = part_bytes(sum(tensor.numel() for tensor in tensors), len(fractions))
    return TensorPartContainer(tensors, fractions, NoCompression(), size, return_deltas=False)


def pieces_of(container: TensorPartContainer) -> list[Parts]:
    """Each member's share, in parts that are views of the tensors. Only once for a container."""
    return [container.get_raw_input_parts(i) for i in range(container.group_size)]


def batches_of(parts: Sequence[torch.Tensor]) -> list[Batch]:
    """Cut a share into batches of about `BATCH_BYTES`; depends on nothing but the sizes, so all members cut alike."""
    batches = []
    start, held = 0, 0
    for end, part in enumerate(parts, start=1):
        held += _FP32_BYTES * part.numel()
        if held >= BATCH_BYTES or end == len(parts):
            batches.append(Batch(slice(start, end), tuple(p.numel() for p in parts[start:end])))
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


def corrected(own: Sequence[torch.Tensor], residual: Sequence[torch.Tensor], weight: float) -> list[torch.Tensor]:
    """What a member of this weight contributes: its own mean gradient, and what rounding still owes (see `Residual`)."""
    if not residual or weight <= 0:
        return list(own)
    return [tensor + owed / weight for tensor, owed in zip(own, residual, strict=True)]


class Residual:
    """What rounding takes from one average at one member, to be added to what the member contributes to its next.

    It is measured in gradient x weight, so that it means the same in a group of other weights: a member's pieces lose
    `weight x (piece - rounded piece)`, the share that it sums up `total weight x (mean - rounded mean)` (error feedback, Seide
    et al. 2014; both directions as in DoubleSqueeze, arXiv 1905.05957).
    """

    def __init__(self, own: Sequence[torch.Tensor], fractions: Sequence[float]) -> None:
        self.tensors = [torch.zeros_like(tensor) for tensor in own]
        self._views = pieces_of(cut(self.tensors, fractions))

    def lost(self, member: int, span: slice, parts: Parts, rounded: Parts, weight: float) -> None:
        """These parts of the share of `member` are counted as `rounded`, with this weight."""
        for view, part, seen in zip(self._views[member][span], parts, rounded, strict=True):
            torch.sub(part, seen, out=view).mul_(weight)

    def unpaid(self, former: Sequence[torch.Tensor]) -> None:
        """This member contributes nothing, so what was owed before still is."""
        if former:
            for tensor, owed in zip(self.tensors, former, strict=True):
                tensor.add_(owed)
