"""Tensors as bytes: of the stated size, equal for equal tensors, close to what was sent, and never anything but finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.wire.tensor_formats import FORMATS
from gwtf_p2p.training.codecs.codec import NotFiniteError
from gwtf_p2p.training.codecs.table import CODECS, codec_of

EVERY = pytest.mark.parametrize("name", CODECS)
BLOCKWISE = pytest.mark.parametrize("name", [name for name in CODECS if FORMATS[name].scale_bytes])
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPE = (2, 3, 96)

ERROR = {"int8": 0.02, "int4": 0.2, "fp8": 0.07}
"""Norm of the error of a block of 64 normally distributed values, as a part of the block's norm."""


def values(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def passed_on(name: str, tensor: torch.Tensor) -> torch.Tensor:
    codec = codec_of(name)
    return codec.decode(codec.encode(tensor), tuple(tensor.shape))


@EVERY
@pytest.mark.parametrize("shape", [SHAPE, (1,), (64,), (65,), (5, 13), (0,), (3, 4096)])
def test_the_bytes_are_as_many_as_the_format_says(name: str, shape: tuple[int, ...]) -> None:
    codec, tensor = codec_of(name), values(shape=shape)
    encoded = codec.encode(tensor)
    assert len(encoded) == codec.form.encoded_bytes(math.prod(shape))
    codec.check(encoded, math.prod(shape))
    assert codec.decode(encoded, shape).shape == shape


@EVERY
def test_the_same_tensor_has_the_same_bytes_however_it_lies_in_memory(name: str) -> None:
    codec, tensor = codec_of(name), values(shape=(300, 128))
    turned = tensor.T.contiguous().T
    assert bytes(codec.encode(tensor)) == bytes(codec.encode(tensor.clone())) == bytes(codec.encode(turned))


@EVERY
@pytest.mark.parametrize("container", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_read_and_is_not_written_to(name: str, container: type) -> None:
    codec, encoded = codec_of(name), bytes(codec_of(name).encode(values()))
    received = codec.decode(container(encoded), SHAPE)
    assert torch.equal(received, codec.decode(encoded, SHAPE))
    buffer = bytes(encoded)
    codec.decode(buffer, SHAPE).zero_()
    assert buffer == encoded


@pytest.mark.parametrize("name", FLOATS)
def test_a_plain_type_is_exact_for_its_own_values(name: str) -> None:
    received = passed_on(name, values())
    assert torch.equal(received, values().to(FLOATS[name]))


def test_float32_on_the_cpu_is_not_copied() -> None:
    sent = values()
    codec = codec_of("float32")
    assert codec.decode(codec.encode(sent), SHAPE).data_ptr() == sent.data_ptr()


def test_what_float16_cannot_hold_is_clamped() -> None:
    assert passed_on("float16", torch.tensor([1e6, -1e6, 3.4e38])).tolist() == [65504.0, -65504.0, 65504.0]


@BLOCKWISE
@pytest.mark.parametrize("scale", [1e-25, 1e-9, 1.0, 1e20])
def test_the_error_is_a_small_part_of_the_block_at_any_scale(name: str, scale: float) -> None:
    sent = values(shape=(50, 64)) * scale
    error = (passed_on(name, sent).double() - sent).norm(dim=1)
    assert bool((error <= ERROR[name] * sent.double().norm(dim=1)).all())


@BLOCKWISE
def test_numbers_near_the_end_of_the_range_survive_or_are_not_sent(name: str) -> None:
    with pytest.raises(NotFiniteError):
        codec_of(name).encode(torch.full((64,), torch.finfo(torch.float32).max))
    largest = torch.finfo(torch.float32).max / 8192
    received = passed_on(name, torch.full((64,), largest))
    assert received.isfinite().all()
    assert (received / largest - 1).norm() <= ERROR[name] * 8


@BLOCKWISE
def test_an_outlier_spoils_its_own_block_only(name: str) -> None:
    sent = values(shape=(2, 64))
    sent[0, 5] = 1e4
    assert torch.equal(passed_on(name, sent)[1], passed_on(name, values(shape=(2, 64)))[1])


def test_the_rotation_spreads_an_outlier_that_four_bits_alone_could_not_bear() -> None:
    sent = values(shape=(64, 64))
    sent[:, 7] = 20.0
    error = (passed_on("int4", sent) - sent).norm() / sent.norm()
    step = sent.abs().amax(dim=1, keepdim=True) / 7
    plain = ((sent / step).round() * step - sent).norm() / sent.norm()
    assert error < plain / 2


@pytest.mark.parametrize(("name", "most"), [("int8", 0.27), ("fp8", 0.27), ("int4", 0.145)])
def test_what_a_format_saves(name: str, most: float) -> None:
    assert FORMATS[name].encoded_bytes(4 * 128 * 1024) <= most * FORMATS["float32"].encoded_bytes(4 * 128 * 1024)


@BLOCKWISE
def test_zeros_stay_zeros(name: str) -> None:
    assert torch.equal(passed_on(name, torch.zeros(SHAPE)), torch.zeros(SHAPE))


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_sent(name: str, bad: float) -> None:
    tensor = values()
    tensor[1, 2, 3] = bad
    with pytest.raises(NotFiniteError, match=name):
        codec_of(name).encode(tensor)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_the_senders_fault(name: str, bad: float) -> None:
    poisoned = torch.full((64,), bad).to(FLOATS[name]).view(torch.uint8).numpy().tobytes()
    with pytest.raises(RemoteProtocolError, match="not finite"):
        codec_of(name).check(poisoned, 64)
    with pytest.raises(RemoteProtocolError, match="not finite"):
        codec_of(name).decode(poisoned, (64,))


@BLOCKWISE
@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, 1e38])
def test_a_scale_out_of_range_is_the_senders_fault(name: str, scale: float) -> None:
    encoded = bytearray(codec_of(name).encode(values()))
    encoded[:2] = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    for read in (lambda: codec_of(name).check(encoded, math.prod(SHAPE)), lambda: codec_of(name).decode(encoded, SHAPE)):
        with pytest.raises(RemoteProtocolError, match="scale"):
            read()


@EVERY
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_the_senders_fault(name: str, change: int) -> None:
    codec = codec_of(name)
    encoded = bytes(codec.form.encoded_bytes(math.prod(SHAPE)) + change)
    with pytest.raises(RemoteProtocolError, match=f"got {len(encoded)}"):
        codec.decode(encoded, SHAPE)


@EVERY
@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 3))
def test_whatever_bytes_come_give_finite_numbers_or_a_refusal(name: str, data: st.DataObject, rows: int) -> None:
    codec, shape = codec_of(name), (rows, 96)
    size = codec.form.encoded_bytes(math.prod(shape))
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        received = codec.decode(payload, shape)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            codec.check(payload, math.prod(shape))
        return
    codec.check(payload, math.prod(shape))
    assert received.shape == shape
    assert received.isfinite().all()


@EVERY
@settings(deadline=None)
@given(numbers=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=130))
def test_what_is_sent_comes_back_nearly(name: str, numbers: list[float]) -> None:
    sent = torch.tensor(numbers)
    received = passed_on(name, sent).float()
    if name in FLOATS:
        expected = sent.clamp(-65504, 65504) if name == "float16" else sent
        assert torch.equal(received, expected.to(FLOATS[name]).float())
        return
    assert (received.double() - sent).norm() <= 8 * ERROR[name] * sent.double().norm() + 1e-25


@pytest.mark.skipif("fp8" not in CODECS, reason="this torch has no float8")
def test_every_float8_is_read_as_torch_reads_it() -> None:
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F] + [0, 0], dtype=torch.uint8)
    scales = torch.tensor([1.0, 2.0**-100, 2.0**100, 0.375], dtype=torch.bfloat16)
    received = codec_of("fp8").decode(bytearray(scales.view(torch.uint8).numpy().tobytes() + codes.numpy().tobytes()), (256,))
    expected = codes.view(torch.float8_e4m3fn).float().view(4, 64) * scales.float().unsqueeze(1)
    assert torch.equal(received.view(torch.int32), expected.view(-1).view(torch.int32)), "to the bit, the sign of zero too"


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(InputError, match=r"wire.gradients: .*int8.* not 'int3'"):
        codec_of("int3", field="wire.gradients")


def test_every_format_has_a_codec_where_torch_has_its_type() -> None:
    assert set(FORMATS) - set(CODECS) <= ({"fp8"} if not hasattr(torch, "float8_e4m3fn") else set())
    assert all(codec.form is FORMATS[name] for name, codec in CODECS.items())
