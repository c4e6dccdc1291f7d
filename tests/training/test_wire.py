"""Tensors as bytes: exact in the wire dtype, of the right length, without needless copies."""

from __future__ import annotations

import pytest
import torch

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.training.compute.tensor_bytes import dtype_of, from_wire, to_wire, wire_bytes

SHAPE = (2, 3, 5)


def values(number: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_round_trip(dtype: str, container: type) -> None:
    buffer = to_wire(values(), dtype)
    assert buffer.nbytes == wire_bytes(SHAPE, dtype)
    received = from_wire(container(buffer), SHAPE, dtype)
    assert received.dtype == dtype_of(dtype)
    assert torch.equal(received, values().to(dtype_of(dtype)))


def test_a_tensor_that_is_not_contiguous_travels_row_by_row() -> None:
    turned = values().transpose(0, 2)
    assert torch.equal(from_wire(to_wire(turned, "float32"), (5, 3, 2), "float32"), turned)


def test_float32_on_the_cpu_is_not_copied() -> None:
    sent = values()
    received = from_wire(to_wire(sent, "float32"), SHAPE, "float32")
    assert received.data_ptr() == sent.data_ptr()


def test_bytes_are_copied_once_because_tensors_must_be_writable() -> None:
    buffer = bytes(to_wire(values(), "float32"))
    received = from_wire(buffer, SHAPE, "float32")
    received.zero_()
    assert buffer == bytes(to_wire(values(), "float32"))


@pytest.mark.parametrize("length", [0, 119, 121])
def test_a_wrong_length_is_the_senders_fault(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"expected 120 bytes .* got {length}"):
        from_wire(bytes(length), SHAPE, "float32")


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(InputError, match="wire_dtype: expected float32 or bfloat16, got 'int8'"):
        to_wire(values(), "int8")
