"""The tensors of a boundary as one byte string: one after the other in the boundary's order, without a header.

Both sides know the boundary (`BoundaryTensor`) and the codec. Floats travel as the codec says, each tensor on its own; token
ids as 32-bit little-endian integers, whatever the codec, because an id that is rounded is another token, and what is exact as
float32. Nothing of an integer comes back: the gradient of a boundary has its floats alone, which may be none at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.records import BoundaryTensor
from gwtf_p2p.protocol.wire.run_parts import LABELS, LOSS, LOSS_GRADIENT, floats_of
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32
from gwtf_p2p.training.codecs.codec import Buffer, Codec, FloatCodec
from gwtf_p2p.training.compute.loss import NO_LABEL
from gwtf_p2p.training.compute.tensor_bytes import tensor_bytes

EXACT = FloatCodec(FLOAT32, torch.float32)
NO_BOUNDS: Mapping[str, int] = {}


def encode_payload(payload: Sequence[Tensor], boundary: Sequence[BoundaryTensor], codec: Codec) -> memoryview:
    """All tensors; shares the memory of one that is alone where its codec does. Raises NotFiniteError."""
    parts = [
        tensor_bytes(tensor.to(torch.int32)) if each.is_integer else _codec(each, codec).encode(tensor)
        for tensor, each in zip(payload, boundary, strict=True)
    ]
    return parts[0] if len(parts) == 1 else memoryview(bytearray().join(parts))


def check_payload(
    buffer: Buffer, boundary: Sequence[BoundaryTensor], codec: Codec, below: Mapping[str, int] = NO_BOUNDS
) -> float:
    """What `decode_payload` refuses, at a small part of its cost; and integers that are negative (but for a token without a
    label), or not below what their name has in `below`; and what no loss of so few tokens can be. Raises RemoteProtocolError.

    Returns how large the floats are (`Codec.check`): of several tensors, the first one that has any, which is the hidden state;
    of a loss, it alone.
    """
    sizes = []
    for part, each in _parts(buffer, boundary, codec):
        if not each.is_integer:
            size = _codec(each, codec).check(part, each.values)
            sizes.append(_checked_loss(part, below[LOSS]) if each.name == LOSS and LOSS in below else size)
        elif each.name in below:
            _check_integers(part, each, below[each.name])
    return sizes[0] if sizes else 0.0


def decode_payload(
    buffer: Buffer, boundary: Sequence[BoundaryTensor], codec: Codec, device: str | torch.device = "cpu"
) -> tuple[Tensor, ...]:
    """The tensors of one byte string, floats as the codec gives them, integers as int64. Raises RemoteProtocolError."""
    tensors = []
    for part, each in _parts(buffer, boundary, codec):
        if each.is_integer:
            values = np.frombuffer(part, dtype="<i4").astype(np.int64).reshape(each.shape)
            tensors.append(torch.from_numpy(values).to(device))
        else:
            tensors.append(_codec(each, codec).decode(part, each.shape, device))
    return tuple(tensors)


def encode_gradient(gradient: Sequence[Tensor], boundary: Sequence[BoundaryTensor], codec: Codec) -> memoryview:
    """The gradient of a payload, in which something stands for integers, too. Raises NotFiniteError."""
    floats = [tensor for tensor, each in zip(gradient, boundary, strict=True) if not each.is_integer]
    return encode_payload(floats, floats_of(boundary), codec)


def check_gradient(buffer: Buffer, boundary: Sequence[BoundaryTensor], codec: Codec) -> float:
    """As `check_payload`; that of a loss has to be one. Raises RemoteProtocolError."""
    size = check_payload(buffer, floats_of(boundary), codec)
    if boundary[0].name == LOSS:
        check_loss_gradient(buffer)
    return size


def decode_gradient(
    buffer: Buffer, boundary: Sequence[BoundaryTensor], codec: Codec, device: str | torch.device = "cpu"
) -> tuple[Tensor, ...]:
    """A gradient for each tensor of the boundary, zeros (int64) for integers. Raises RemoteProtocolError."""
    floats = iter(decode_payload(buffer, floats_of(boundary), codec, device))
    return tuple(
        torch.zeros(each.shape, dtype=torch.int64, device=device) if each.is_integer else next(floats) for each in boundary
    )


def check_loss_gradient(buffer: Buffer) -> None:
    """Raises RemoteProtocolError for any other than that of the loss by itself."""
    values = np.frombuffer(buffer, dtype="<f4").tolist()
    if values != list(LOSS_GRADIENT):
        raise RemoteProtocolError(f"gradient of a loss: expected {list(LOSS_GRADIENT)}, got {values}")


def _checked_loss(part: memoryview, below: int) -> float:
    """The loss of a payload of finite values."""
    loss, total, tokens = (float(value) for value in np.frombuffer(part, dtype="<f4"))
    if not (loss >= 0 and total >= 0 and 0 <= tokens < below and tokens == int(tokens)):
        raise RemoteProtocolError(
            f"loss: expected one of at most {below - 1} tokens, got {loss:.3g}, {total:.3g} of {tokens:.3g}"
        )
    return loss


def _check_integers(part: memoryview, each: BoundaryTensor, below: int) -> None:
    values = np.frombuffer(part, dtype="<i4")
    bad = (values < 0) | (values >= below)
    if each.name == LABELS:
        bad &= values != NO_LABEL
    if bad.any():
        raise RemoteProtocolError(f"{each.name}: expected whole numbers from 0 to {below - 1}, got {values[bad][0]}")


def _codec(each: BoundaryTensor, codec: Codec) -> Codec:
    return EXACT if each.is_exact else codec


def _parts(buffer: Buffer, boundary: Sequence[BoundaryTensor], codec: Codec) -> Iterator[tuple[memoryview, BoundaryTensor]]:
    view = memoryview(buffer).cast("B")
    sizes = [each.encoded_bytes(codec.form) for each in boundary]
    if view.nbytes != sum(sizes):
        shapes = ", ".join(str(each.shape) for each in boundary)
        raise RemoteProtocolError(f"tensor: expected {sum(sizes)} bytes for {shapes} in {codec.form.name}, got {view.nbytes}")
    start = 0
    for each, size in zip(boundary, sizes, strict=True):
        yield view[start : start + size], each
        start += size
