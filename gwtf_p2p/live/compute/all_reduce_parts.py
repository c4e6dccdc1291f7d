"""Parts of tensors on their way through an average: cutting into batches, bytes and back, and the sum itself.

Pure functions; the long ones are meant for a thread.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from google.protobuf.message import DecodeError
from hivemind.compression import CompressionBase, CompressionInfo
from hivemind.proto import runtime_pb2

from gwtf_p2p.protocol.errors import RemoteProtocolError

BATCH_BYTES = 4 << 20
_LENGTH = struct.Struct(">I")
_OVERHEAD_BYTES = 64
_MIN_PART_BYTES, _MAX_PART_BYTES = 1 << 14, 1 << 19
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive parts of one member's share, sent as one payload."""

    span: slice
    sizes: tuple[int, ...]

    @property
    def max_bytes(self) -> int:
        return sum(_LENGTH.size + _OVERHEAD_BYTES + _FP32_BYTES * size for size in self.sizes)


def part_bytes(total_values: int, members: int) -> int:
    """Size of the parts that the tensors are cut into: small enough that the shares come out about as intended."""
    return max(_MIN_PART_BYTES, min(_MAX_PART_BYTES, _FP32_BYTES * total_values // (4 * members)))


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


def pack_parts(parts: Sequence[torch.Tensor], compression: CompressionBase) -> bytes:
    """Parts as hivemind serialises them, each behind its length."""
    pieces = []
    for key, part in enumerate(parts):
        packed = compression.compress(part, CompressionInfo.from_tensor(part, key=key)).SerializeToString()
        pieces += [_LENGTH.pack(len(packed)), packed]
    return b"".join(pieces)


def unpack_parts(payload: memoryview | bytes, batch: Batch, compression: CompressionBase) -> tuple[torch.Tensor, ...]:
    """Raises RemoteProtocolError unless the payload is exactly this batch, in this compression, of finite numbers."""
    view = memoryview(payload)
    parts = []
    for size in batch.sizes:
        if len(view) < _LENGTH.size:
            raise RemoteProtocolError("the payload ends early")
        (length,) = _LENGTH.unpack_from(view)
        parts.append(_unpack_part(bytes(view[_LENGTH.size : _LENGTH.size + length]), size, compression))
        view = view[_LENGTH.size + length :]
    if len(view):
        raise RemoteProtocolError(f"{len(view)} bytes too many")
    return tuple(parts)


def _unpack_part(packed: bytes, size: int, compression: CompressionBase) -> torch.Tensor:
    try:
        serialized = runtime_pb2.Tensor.FromString(packed)
    except DecodeError as error:
        raise RemoteProtocolError(f"not a tensor: {error}") from error
    if serialized.compression != compression.compression_type or serialized.dtype != "float32":
        raise RemoteProtocolError(f"a tensor of {serialized.dtype:.20} in compression {serialized.compression}")
    info = CompressionInfo.from_tensor(torch.empty(1), key=0)
    value_bytes = round(_FP32_BYTES * compression.estimate_compression_ratio(info))
    if tuple(serialized.size) != (size,) or len(serialized.buffer) != size * value_bytes:
        raise RemoteProtocolError(f"a tensor of {tuple(serialized.size)} where {size} values are due")
    part = compression.extract(serialized)
    if not torch.isfinite(part).all():
        raise RemoteProtocolError("numbers that are not finite")
    return part
