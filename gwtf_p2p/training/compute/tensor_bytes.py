"""Tensors as bytes on the wire: raw little-endian values in the run's wire dtype, row by row, without a header.

Shape and dtype are known on both sides (run record: microbatch x sequence x hidden), so a tensor travels as its bytes alone;
length and hash belong to the transport. Copies are made only where one is needed: another dtype, another device, a tensor that
is not contiguous, or a read-only buffer (torch tensors must be writable).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError

WIRE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str, where: str = "run record", field: str = "wire_dtype") -> torch.dtype:
    """The torch dtype of a name. Raises InputError."""
    if name not in WIRE_DTYPES:
        raise InputError(where, field, f"expected {' or '.join(WIRE_DTYPES)}, got {name!r}")
    return WIRE_DTYPES[name]


def wire_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Size of a tensor on the wire, in bytes."""
    return math.prod(shape) * dtype_of(dtype).itemsize


def to_wire(tensor: Tensor, dtype: str) -> memoryview:
    """The tensor's values as bytes; shares the tensor's memory where no conversion was needed, so don't write to it."""
    return tensor_bytes(tensor.detach().to(dtype_of(dtype)))


def from_wire(
    buffer: bytes | bytearray | memoryview, shape: tuple[int, ...], dtype: str, device: str | torch.device = "cpu"
) -> Tensor:
    """The tensor of these bytes, in the wire dtype; shares a writable buffer's memory when `device` is the CPU.

    Raises RemoteProtocolError when the length does not fit the shape.
    """
    view = memoryview(buffer).cast("B")
    expected = wire_bytes(shape, dtype)
    if view.nbytes != expected:
        raise RemoteProtocolError(f"activation: expected {expected} bytes for {shape} in {dtype}, got {view.nbytes}")
    if view.readonly:
        values = torch.empty(shape, dtype=dtype_of(dtype))
        tensor_bytes(values)[:] = view
    else:
        values = torch.frombuffer(view, dtype=dtype_of(dtype)).view(shape)
    return values.to(device)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's own bytes, row by row: a view of its memory if it lies contiguous on the CPU, else of a copy."""
    # numpy has no bfloat16, so every dtype goes through bytes.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy()).cast("B")  # type: ignore[arg-type]
