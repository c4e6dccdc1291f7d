"""The formats in which tensors travel, by name, and how many bytes each takes. What the bytes mean is `training/codecs`.

Planners and offers need sizes without torch, so the one table of names is here; a run names a format for each direction
(`records.WireSpec`). A blockwise format cuts the values, row by row, into blocks of `block_values`, the last one filled up with
zeros, and sends a scale of `scale_bytes` for each.
"""

from __future__ import annotations

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


def format_of(name: str, where: str, field: str) -> TensorFormat:
    """The format of this name. Raises InputError that names the field."""
    if name not in FORMATS:
        raise InputError(where, field, f"expected one of {', '.join(FORMATS)}, got {name!r:.40}")
    return FORMATS[name]
