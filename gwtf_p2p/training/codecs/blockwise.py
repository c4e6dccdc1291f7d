"""One scale per block of 64 values, and 8 bits per value: about 0.26 of float32's bytes.

The scale is a bfloat16: it has float32's range, while gradients of 1e-9 and less are common and underflow in a float16. It is
rounded up, so that the largest value of a block never needs clipping; the step grows by 1/256 at most. A block whose largest
value is below 2^-100 becomes zeros, so that its scale has a finite inverse. (Dettmers et al., arXiv 2110.02861, use blocks for
the same reason: one outlier spoils the resolution of its own block only.)

    bytes = scales (bfloat16, one per block) . values (8 bits each, the last block filled up)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.tensor_formats import TensorFormat
from gwtf_p2p.training.codecs.codec import Buffer, check_finite, received, root_mean_square
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes

SMALLEST_SCALE = 2.0**-100
LARGEST_SCALE = 2.0**118
"""Times the largest stored value (448, of fp8; 64, of a rotated int4), this is finite in float32."""

_ROWS = 4096
"""Blocks at once on a CPU: 1 MiB of float32, so that the passes over it stay in the cache (2 times quicker, measured)."""


def blocks_of(tensor: Tensor, form: TensorFormat) -> Tensor:
    """The values as float32 rows of one block each (blocks x block_values), the last row filled up with zeros."""
    flat = tensor.detach().reshape(-1)
    missing = form.blocks(flat.numel()) * form.block_values - flat.numel()
    if missing:
        flat = functional.pad(flat, (0, missing))
    return flat.view(-1, form.block_values).to(torch.float32)


def spans(rows: int, device: torch.device) -> Iterator[slice]:
    """The rows in pieces that fit a CPU's cache; all at once on a GPU."""
    step = _ROWS if device.type == "cpu" else max(rows, 1)
    return (slice(start, start + step) for start in range(0, rows, step))


def in_range(largest: Tensor, top: float) -> bool:
    """Whether a scale exists for each of these largest values; there is none for NaN and Inf, and above 1e36."""
    return bool((largest <= LARGEST_SCALE * top).all())


def scales_for(largest: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Bfloat16 scales, rounded up, that bring values up to `largest` to at most `top`; and their float32 inverses."""
    bits = ((largest / top).view(torch.int32) + 0xFFFF) >> 16
    scales = bits.to(torch.int16).view(torch.bfloat16)
    wide = scales.float()
    is_zero = wide < SMALLEST_SCALE
    return scales.masked_fill(is_zero, 0.0), (1.0 / wide).masked_fill(is_zero, 0.0)


def cut_of(values: int, form: TensorFormat) -> int:
    """Where the scales end and the values begin, in bytes."""
    return form.scale_bytes * form.blocks(values)


def parts_of(buffer: Buffer, values: int, form: TensorFormat) -> tuple[Tensor, Tensor]:
    """Float32 scales and the bytes of the values, on the CPU.

    Raises RemoteProtocolError for a wrong length, and unless each scale is finite, not negative and in range.
    """
    raw, cut = received(buffer, values, form), cut_of(values, form)
    scales = raw[:cut].view(torch.bfloat16).float()
    if not bool(((scales >= 0) & (scales <= LARGEST_SCALE)).all()):
        raise RemoteProtocolError(f"tensor: a block scale out of range, in {form.name}")
    return scales, raw[cut:]


class _Scaled(ABC):
    """Values of one byte times their block's scale. A kind says how values are rounded and read, and which are none."""

    TOP: float
    VALUE: torch.dtype

    def __init__(self, form: TensorFormat) -> None:
        self._form = form

    @property
    def form(self) -> TensorFormat:
        return self._form

    def encode(self, tensor: Tensor) -> memoryview:
        form, blocks = self._form, blocks_of(tensor, self._form)
        out = torch.empty(form.encoded_bytes(tensor.numel()), dtype=torch.uint8, device=blocks.device)
        cut = cut_of(tensor.numel(), form)
        scales, values = out[:cut].view(torch.bfloat16), out[cut:].view(self.VALUE).view(blocks.shape)
        for span in spans(len(blocks), blocks.device):
            piece = blocks[span].abs()
            largest = piece.amax(dim=1)
            check_finite(in_range(largest, self.TOP), form)
            scales[span], inverse = scales_for(largest, self.TOP)
            values[span] = self._rounded(torch.mul(blocks[span], inverse.unsqueeze(1), out=piece))
        return tensor_bytes(out)

    def check(self, buffer: Buffer, values: int) -> float:
        return root_mean_square(self._checked(buffer, values)[0])

    def decode(self, buffer: Buffer, shape: tuple[int, ...], device: str | torch.device = "cpu") -> Tensor:
        count = math.prod(shape)
        scales, raw = (part.to(device) for part in self._checked(buffer, count))
        values = raw.view(torch.int8).view(-1, self._form.block_values)
        blocks = torch.empty(values.shape, dtype=torch.float32, device=raw.device)
        for span in spans(len(values), raw.device):
            self._read(values[span], scales[span].unsqueeze(1), blocks[span])
        return blocks.view(-1)[:count].view(shape)

    def _checked(self, buffer: Buffer, values: int) -> tuple[Tensor, Tensor]:
        """Scales and bytes. Raises RemoteProtocolError."""
        return parts_of(buffer, values, self._form)

    def _rounded(self, scaled: Tensor) -> Tensor:
        """In place, as far as the type of the values does not do it."""
        return scaled

    @abstractmethod
    def _read(self, values: Tensor, scales: Tensor, into: Tensor) -> None:
        """Values (as int8) times their block's scale, as float32."""


class Int8Codec(_Scaled):
    """Whole numbers of -127 to 127 times the block's scale; the error is at most half a scale."""

    TOP = 127.0
    VALUE = torch.int8

    def _rounded(self, scaled: Tensor) -> Tensor:
        return scaled.round_()

    def _read(self, values: Tensor, scales: Tensor, into: Tensor) -> None:
        into.copy_(values).mul_(scales)


_HALVES_SMALLER = 256.0
"""By how much a float16 of the same bits is smaller: its exponent counts from 15, that of a float8 (e4m3) from 7."""


def _as_halves(values: Tensor) -> Tensor:
    """Float8 (as int8) as float16 of the same sign, exponent and mantissa: 6 times quicker on a CPU than torch's own change of
    type (measured), and exact."""
    return (values.to(torch.int16) << 7).bitwise_and_(~0x4000).view(torch.float16)


class Fp8Codec(_Scaled):
    """Float8 (e4m3) times the block's scale: 3 bits of precision for values of any size in the block."""

    TOP = 448.0
    VALUE = torch.float8_e4m3fn

    def _read(self, values: Tensor, scales: Tensor, into: Tensor) -> None:
        into.copy_(_as_halves(values)).mul_(scales * _HALVES_SMALLER)

    def _checked(self, buffer: Buffer, values: int) -> tuple[Tensor, Tensor]:
        scales, raw = super()._checked(buffer, values)
        if bool(((raw & 0x7F) == 0x7F).any()):
            raise RemoteProtocolError(f"tensor: values that are not numbers, in {self._form.name}")
        return scales, raw
