"""The first bytes of a stream: which run and wire version, what it is for, and in a secret run that both ends have its token.

The opener speaks first: 8 bytes of greeting, answered by 8 bytes. Nothing else travels before the answer, so both ends can
change from StreamReader to frames without losing a byte.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import ExitStack
from enum import IntEnum
from typing import cast

from gwtf_p2p.live.libp2p.dialling import StreamRefused, open_stream
from gwtf_p2p.live.rpc.frames import CHUNK_BYTES, SCRATCH_BYTES, FrameListener, FrameStream, clock_s
from gwtf_p2p.live.rpc.proving import Prover
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import WIRE_VERSION

GREETING = struct.Struct(">4sBB2x")
MAGIC = b"GWTF"


class Purpose(IntEnum):
    """Why a stream was opened, said in the greeting."""

    TRANSFER = 1
    WATCH = 2
    DIRECT = 3
    """To ask where the data port is (`live/direct`). Peers that know of none end such a stream."""


class Greeted(IntEnum):
    """The acceptor's answer to a greeting."""

    OK = 0
    WRONG_VERSION = 1
    PROVE = 2
    """The run is secret: see `proving`."""
    WRONG_TOKEN = 3


def protocol_name(run_id: RunId) -> str:
    """The libp2p protocol of a run's streams. It names no version: those who differ in it must be able to tell each other."""
    return f"gwtf/{run_id}"


async def open_frames(
    control_path: str,
    peer: PeerId,
    protocol_name: str,
    purpose: Purpose,
    listener: FrameListener,
    prover: Prover | None = None,
) -> tuple[FrameStream, float]:
    """Open a stream to `peer` through the p2pd at `control_path`, and `greet`.

    Raises StreamRefused, or OSError when the own p2pd is gone. Safe to cancel: nothing stays open.
    """
    try:
        stream = await open_stream(control_path, peer, protocol_name)
    except asyncio.IncompleteReadError as error:
        raise StreamRefused("the own p2pd does not answer") from error
    return await greet(stream, peer, purpose, listener, prover)


async def greet(
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    peer: PeerId,
    purpose: Purpose,
    listener: FrameListener,
    prover: Prover | None = None,
) -> tuple[FrameStream, float]:
    """The opener's greeting on a new stream; returns its frames with the round trip of the greeting in seconds.

    `prover`: the run is secret. Raises StreamRefused, also for another version or token. Safe to cancel: nothing stays open.
    """
    reader, writer = stream
    with ExitStack() as on_failure:
        on_failure.callback(writer.transport.abort)
        try:
            start_s = clock_s()
            writer.write(GREETING.pack(MAGIC, WIRE_VERSION, purpose))
            magic, version, status = GREETING.unpack(await reader.readexactly(GREETING.size))
            round_trip_s = clock_s() - start_s
            if prover is not None and magic == MAGIC and status != Greeted.WRONG_VERSION:
                status = await _prove(prover, peer, (reader, writer), purpose, status)
        except asyncio.IncompleteReadError as error:
            raise StreamRefused("the stream ended during the greeting") from error
        if reader.at_eof() or writer.is_closing():  # it ended right behind the greeting: the frames would never hear of it
            raise StreamRefused("the stream ended during the greeting")
        if magic == MAGIC and status in (Greeted.PROVE, Greeted.WRONG_TOKEN):
            raise StreamRefused("it belongs to a secret run, and this peer has not the token")
        if magic != MAGIC or status != Greeted.OK:
            raise StreamRefused(f"it speaks wire version {version}, this peer {WIRE_VERSION}")
        on_failure.pop_all()
    return _take_over(writer, listener), round_trip_s


async def _prove(
    prover: Prover, peer: PeerId, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], purpose: Purpose, status: int
) -> int:
    """Prove, and have it proved, that both ends have the run's token; what the acceptor says to that. Raises StreamRefused."""
    reader, writer = stream
    if status != Greeted.PROVE:
        raise StreamRefused("it does not ask for the token of a secret run")
    numbers = await prover.answer(peer, reader, writer, purpose)
    _, _, status = GREETING.unpack(await reader.readexactly(GREETING.size))
    if status == Greeted.OK and not await prover.believes(peer, reader, numbers, purpose):
        raise StreamRefused("it has not the token of this run")
    return status


class OtherVersion(Exception):
    """A stream whose opener speaks another wire version."""


async def accept_greeting(reader: asyncio.StreamReader) -> Purpose | None:
    """Acceptor's first step: the purpose of a new stream, or None when it is no stream of ours. Raises OtherVersion."""
    magic, version, purpose = GREETING.unpack(await reader.readexactly(GREETING.size))
    if magic == MAGIC and version != WIRE_VERSION:
        raise OtherVersion(f"it speaks wire version {version}, this peer {WIRE_VERSION}")
    if magic != MAGIC or purpose not in Purpose._value2member_map_:
        return None
    return Purpose(purpose)


async def challenge(
    prover: Prover, opener: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, purpose: Purpose
) -> bytes | None:
    """Acceptor's step between in a secret run: its proof for `accept_frames`, None for an opener that has not the token."""
    asked = GREETING.pack(MAGIC, WIRE_VERSION, Greeted.PROVE)
    return await prover.challenge(opener, asked, reader, writer, purpose)


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, why: Greeted = Greeted.WRONG_VERSION) -> None:
    """Tells the opener why, and which version is spoken here, and waits for it to end the stream."""
    writer.write(GREETING.pack(MAGIC, WIRE_VERSION, why))
    while await reader.read(SCRATCH_BYTES):
        pass  # it has no business to say anything, and could say much


def accept_frames(writer: asyncio.StreamWriter, listener: FrameListener, proof: bytes = b"") -> FrameStream:
    """Acceptor's last step. The opener says nothing until our answer is there, so no byte is lost."""
    stream = _take_over(writer, listener)
    writer.write(GREETING.pack(MAGIC, WIRE_VERSION, Greeted.OK) + proof)
    return stream


def _take_over(writer: asyncio.StreamWriter, listener: FrameListener) -> FrameStream:
    stream = FrameStream(writer, listener)
    transport = cast(asyncio.Transport, writer.transport)
    transport.pause_reading()  # uvloop chooses its read callbacks when reading starts
    transport.set_protocol(stream)
    transport.set_write_buffer_limits(high=CHUNK_BYTES)
    transport.resume_reading()
    return stream
