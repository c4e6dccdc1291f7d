"""What is exchanged: statements, which their owners sign, and marks, by which peers tell each other which statements they have.

A statement is a stage record with how long it holds and the anchor of its owner's signs of life. The `index`-th sign of life
says: the same record, with a `sequence_number` that is greater by `index`, holds for `index` times `step_s` longer.

A mark is 34 bytes: which owner, the `sequence_number` of its statement, the index of its newest sign of life, and that sign.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated

from annotated_types import Interval, Len

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.alive import MOST_SIGNS, SIGN_BYTES
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, decode
from gwtf_p2p.protocol.wire.signed import MOST_SIGNED_BYTES

STATED = "stated"
"""The kind of record that its owner signs (`live/discovery/signing`)."""

MOST_STATED_BYTES = MOST_SIGNED_BYTES - 128
"""Of the record in a statement: with its owner's key and signature it stays within the bound of all records."""

OWNER_BYTES = 8
MOST_MARKS = 2048
"""In one message; whoever has more to tell goes on in the next."""

_MARK = struct.Struct(f">{OWNER_BYTES}sQH{SIGN_BYTES}s")
MARK_BYTES = _MARK.size
_NO_SIGN = bytes(SIGN_BYTES)


@dataclass(frozen=True, slots=True)
class Stated:
    """`record` is the msgpack of a stage record; it holds until `expires_at` (DHT time, seconds since the epoch), and for
    `step_s` more with each sign of life."""

    record: Annotated[bytes, Len(1, MOST_STATED_BYTES)]
    expires_at: Annotated[float, Interval(ge=0.0, le=1e12)]
    step_s: Annotated[float, Interval(ge=0.1, le=600.0)]
    anchor: Annotated[bytes, Len(SIGN_BYTES, SIGN_BYTES)]
    wire_version: int = WIRE_VERSION


def decode_stated(data: bytes) -> Stated:
    """Raises RemoteProtocolError when the bytes are no statement, OtherWireVersion when of another version."""
    return decode(Stated, data)


@lru_cache(maxsize=1 << 13)
def short(owner: PeerId) -> bytes:
    """What stands for an owner in a mark."""
    return blake2b(owner.encode(), digest_size=OWNER_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Mark:
    """`owner` as `short` has it; `sign` says nothing with index 0."""

    owner: bytes
    sequence_number: int
    index: int = 0
    sign: bytes = _NO_SIGN


def pack_marks(marks: Iterable[Mark]) -> bytes:
    return b"".join(_MARK.pack(mark.owner, mark.sequence_number, mark.index, mark.sign) for mark in marks)


def unpack_marks(data: object) -> list[Mark]:
    """Raises RemoteProtocolError for what is no list of at most `MOST_MARKS` marks."""
    if not isinstance(data, bytes) or len(data) % MARK_BYTES or len(data) > MOST_MARKS * MARK_BYTES:
        raise RemoteProtocolError(f"marks: expected at most {MOST_MARKS} of {MARK_BYTES} bytes each")
    marks = [Mark(*fields) for fields in _MARK.iter_unpack(data)]
    if any(mark.index > MOST_SIGNS or mark.sequence_number > 1 << 40 for mark in marks):
        raise RemoteProtocolError("marks: a number is out of range")
    return marks
