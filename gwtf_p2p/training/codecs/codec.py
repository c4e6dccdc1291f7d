"""What a codec is, the errors of both ends, and the codecs that are a plain change of type.

A codec is a pure function each way: the bytes depend on the values, the shape and the codec alone, so a tensor that is sent
again or computed again has the same bytes. Shape and codec are known on both sides (run record), so bytes travel without a
header. Nothing that is not finite gets through in either direction: `encode` raises NotFiniteError, which is about this peer's
own numbers; `decode` raises RemoteProtocolError, which is about the sender's.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.tensor_formats import TensorFormat
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes

Buffer = bytes | bytearray | memoryview


class NotFiniteError(ArithmeticError):
    """A tensor that this peer would send has NaN or Inf in it, or numbers near the end of float32's range."""


class Codec(Protocol):
    """Tensors to bytes and back. Both directions are vectorised, and run where the tensor is."""

    @property
    def form(self) -> TensorFormat:
        """Name and sizes."""

    def encode(self, tensor: Tensor) -> memoryview:
        """`form.encoded_bytes(tensor.numel())` bytes on the CPU. They may share the tensor's memory. Raises NotFiniteError."""

    def check(self, buffer: Buffer, values: int) -> float:
        """What `decode` refuses, at a small part of its cost: for who must answer the sender before it computes.

        Returns the root mean square of the values; of formats with scales, that of the scales, which is in proportion to it.
        Raises RemoteProtocolError.
        """

    def decode(self, buffer: Buffer, shape: tuple[int, ...], device: str | torch.device = "cpu") -> Tensor:
        """The tensor of these bytes, float32 or a narrower float; it may share a writable buffer's memory.

        Raises RemoteProtocolError when the bytes are no tensor of this shape.
        """


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A sum tells it 40 times quicker than `isfinite`, unless the sum itself overflows."""
    if tensor.dtype == torch.float16:
        return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def root_mean_square(values: Tensor) -> float:
    """In float32, of finite values; `inf` where that overflows, 0 of none."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float32)) / math.sqrt(max(1, values.numel()))


def check_finite(finite: bool, form: TensorFormat) -> None:
    """Raises NotFiniteError for a tensor of this peer's own."""
    if not finite:
        raise NotFiniteError(f"{form.name}: this peer's own tensor has values that are not finite, or too large")


def received(buffer: Buffer, values: int, form: TensorFormat) -> Tensor:
    """The bytes as a flat uint8 tensor, which shares a writable buffer's memory.

    Raises RemoteProtocolError when they are not as many as so many values take.
    """
    view, expected = memoryview(buffer).cast("B"), form.encoded_bytes(values)
    if view.nbytes != expected:
        raise RemoteProtocolError(f"tensor: expected {expected} bytes for {values} values in {form.name}, got {view.nbytes}")
    if not view.readonly and expected:
        return torch.frombuffer(view, dtype=torch.uint8)
    raw = torch.empty(expected, dtype=torch.uint8)  # torch tensors must be writable, and not empty buffers
    tensor_bytes(raw)[:] = view
    return raw


class FloatCodec:
    """A plain change of type: exact for values of that type, rounded to the nearest otherwise.

    What float16 cannot hold is clamped to its largest value, 65504; below 6e-8 it rounds to zero.
    """

    def __init__(self, form: TensorFormat, dtype: torch.dtype) -> None:
        self._form, self._dtype = form, dtype

    @property
    def form(self) -> TensorFormat:
        return self._form

    def encode(self, tensor: Tensor) -> memoryview:
        values = tensor.detach()
        check_finite(is_finite(values), self._form)
        if values.dtype != self._dtype:
            limit = torch.finfo(self._dtype).max
            if limit < torch.finfo(values.dtype).max:
                values = values.clamp(-limit, limit)
            values = values.to(self._dtype)
        return tensor_bytes(values)

    def check(self, buffer: Buffer, values: int) -> float:
        return root_mean_square(self._checked(received(buffer, values, self._form)))

    def decode(self, buffer: Buffer, shape: tuple[int, ...], device: str | torch.device = "cpu") -> Tensor:
        return self._checked(received(buffer, math.prod(shape), self._form)).view(shape).to(device)

    def _checked(self, raw: Tensor) -> Tensor:
        values = raw.view(self._dtype)
        if not is_finite(values):
            raise RemoteProtocolError(f"tensor: values that are not finite, in {self._form.name}")
        return values
