"""Messages of strangers are parsed or refused, never believed beyond their end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.live.libp2p import control as streams
from gwtf_p2p.live.libp2p.dialling import maddr_text


@given(st.lists(st.tuples(st.integers(1, 1000), st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=300))), max_size=8))
def test_what_is_written_is_read_back(fields: list[tuple[int, int | bytes]]) -> None:
    message = b"".join(
        streams._varint(number, value) if isinstance(value, int) else streams._bytes(number, value) for number, value in fields
    )
    assert list(streams._fields(message)) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_a_value_error(message: bytes) -> None:
    try:
        for _, value in streams._fields(message):
            assert isinstance(value, int) or len(value) <= len(message)
    except ValueError:
        pass


def test_a_message_that_ends_too_early_is_refused() -> None:
    whole = streams._bytes(2, b"address")
    for end in range(1, len(whole)):
        with pytest.raises(ValueError, match=r"longer than its message|without end"):
            list(streams._fields(whole[:end]))


def test_bytes_that_are_no_multiaddr_are_no_address() -> None:
    assert maddr_text(b"\xff\xff\xff\x00") == ""
