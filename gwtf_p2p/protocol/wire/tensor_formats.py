"""The formats in which tensors travel, by name, and how many bytes each takes. What the bytes mean is `training/codecs`.

Planners and offers need sizes without torch, so the one table of names is here; a run names a format for each direction
(`records.WireSpec`). A blockwise format cuts the values, row by row, into blocks of `block_values`, the last one filled up with
zeros, and sends a scale of `scale_bytes` for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gwtf_p2p.protocol.errors import InputError


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """`value_bits` for each value; `block_values` 1 and `scale_bytes` 0 for a format without blocks."""

    name: str
    value_bits: int
    block_values: int = 1
    scale_bytes: int = 0

    def blocks(self, values: int) -> int:
        """How many blocks hold so many values."""
        return -(-values // self.block_values)

    def encoded_bytes(self, values: int) -> int:
        """Bytes of a tensor of so many values."""
        blocks = self.blocks(values)
        return blocks * self.block_values * self.value_bits // 8 + blocks * self.scale_bytes


FLOAT32 = TensorFormat("float32", 32)
BFLOAT16 = TensorFormat("bfloat16", 16)
FLOAT16 = TensorFormat("float16", 16)
INT8 = TensorFormat("int8", 8, 64, 2)
FP8 = TensorFormat("fp8", 8, 64, 2)
INT4 = TensorFormat("int4", 4, 64, 2)

FORMATS = {form.name: form for form in (FLOAT32, BFLOAT16, FLOAT16, INT8, FP8, INT4)}
"""Of boundary tensors."""

AVERAGE_FORMATS = {form.name: form for form in (FLOAT32, FLOAT16, INT8)}
"""Of gradients on their way through an average."""

LOW_RANK = "powersgd"
"""Names averages of matrices as products of two thin ones in float32 (`training/codecs/low_rank`)."""

AVERAGES = (*AVERAGE_FORMATS, LOW_RANK)
"""What a run may ask of its averages."""


def format_of(name: str, where: str, field: str) -> TensorFormat:
    """The format of this name. Raises InputError that names the field."""
    if name not in FORMATS:
        raise InputError(where, field, f"expected one of {', '.join(FORMATS)}, got {name!r:.40}")
    return FORMATS[name]


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: the last dimension are its columns."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def is_low_rank(shape: tuple[int, ...], rank: int) -> bool:
    """Whether two thin matrices of this rank are fewer values than the tensor."""
    rows, columns = matrix_of(shape)
    return rank * (rows + columns) < rows * columns


def average_bytes(shapes: Iterable[tuple[int, ...]], averages: str, rank: int) -> int:
    """What tensors of these shapes take once on their way through an average."""
    if averages != LOW_RANK:
        return sum(AVERAGE_FORMATS[averages].encoded_bytes(math.prod(shape)) for shape in shapes)
    values = (rank * sum(matrix_of(shape)) if is_low_rank(shape, rank) else math.prod(shape) for shape in shapes)
    return FLOAT32.encoded_bytes(sum(values))
