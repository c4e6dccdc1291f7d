"""One libp2p stream between two peers, cut into frames.

Both ends reach it through a unix socket of their own p2pd. The stream is taken over from asyncio's StreamReader by a buffered
protocol, because the reader costs two copies of every byte and stalls at its limit of 64 KiB: here the bytes of a payload are
received straight into the buffer that the application gets (measured by experiments/bench/hop.py).

    frame = kind (1 byte) . length of the body (4 bytes, big endian) . body

Rules of the transport:
- The opener speaks first: 8 bytes of greeting, answered by 8 bytes. Nothing else travels before the answer, so both ends can
  change from StreamReader to frames without losing a byte, and a stream that stalls at birth (1 in 25 first calls between two
  NATed peers stalls for exactly 10 s, measured) is given up and reopened before anything was said on it.
- Only the opener ends a stream: p2pd resets a stream right after closing it and the reset can overtake the data, so an acceptor
  that ended first would lose its last bytes in silence (2 of 7,000, measured).
- A payload travels as DATA frames and ends with END, which carries length and CRC-32. The CRC is there against lost bytes, not
  against malice: libp2p already authenticates every byte between the two peer ids, and who wants to send a wrong tensor can
  hash it just as well. CRC-32 runs at 5 GB/s here, sha256 at 1.8, blake2b at 1.0.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, cast

from gwtf_p2p.live.libp2p.dialling import StreamRefused, open_stream
from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.live.rpc.proving import Prover
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.core.sending import Urgency
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import WIRE_VERSION

FRAME_HEADER = struct.Struct(">BI")
END_BODY = struct.Struct(">QI")
GREETING = struct.Struct(">4sBB2x")
MAGIC = b"GWTF"
MAX_CONTROL_BYTES = 1 << 20
CHUNK_BYTES = 1 << 19

clock_s = time.perf_counter
"""For durations only. uvloop's own `loop.time()` counts whole milliseconds; a call takes 0.06."""

_SCRATCH_BYTES = 4096
_TRASH = memoryview(bytearray(1 << 16))  # where refused payloads go; shared by all streams, never read


class Frame(IntEnum):
    """What a frame carries."""

    OFFER = 1
    VERDICT = 2
    DATA = 3
    END = 4
    ABORT = 5
    ACK = 6
    CALL = 7
    REPLY = 8
    PAUSE = 9
    RESUME = 10
    STAND = 11


_FRAMES = {frame.value: frame for frame in Frame}


class Purpose(IntEnum):
    """Why a stream was opened, said in the greeting."""

    TRANSFER = 1
    WATCH = 2


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


class FrameListener(Protocol):
    """Who hears what arrives on a stream. Called from the event loop; must not block."""

    def on_frame(self, kind: Frame, body: bytes) -> None:
        """A whole frame other than DATA has arrived."""

    def on_lost(self, reason: str) -> None:
        """The stream is gone; called exactly once, unless it was closed from this side."""


@dataclass(slots=True)
class HalfFrame:
    """A frame that has begun to come at `began_s` (by `clock_s`): `filled` bytes of its body."""

    kind: Frame
    body: bytearray
    filled: int
    began_s: float


class FrameStream(asyncio.BufferedProtocol):
    """Frames over one transport. Build it with `open_frames` or, on the accepting side, `accept_frames`.

    `meter` counts what is sent, `line` bounds what passes; whoever has one for all streams puts it in the place of the stream's
    own. Where payloads come faster than they may, nothing is read for a while: libp2p then holds the sender back. `may_hold` is
    asked whether a frame of which half has come may take its length, and told with less than 0 when that is free again.
    """

    def __init__(self, writer: asyncio.StreamWriter, listener: FrameListener) -> None:
        self._writer = writer  # kept: a StreamWriter that is collected closes its transport
        self._transport = cast(asyncio.Transport, writer.transport)
        self._listener = listener
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._held = 0
        self.half: HalfFrame | None = None
        self.may_hold: Callable[[int], bool] = lambda more: True
        self._data_left = 0
        self._sink: memoryview | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_closed = False
        self.meter, self.line = Meter(), Line()
        self.rests = False
        self.received_bytes = 0
        self.sink_filled = 0
        self.sink_crc = 0

    @property
    def is_mid_frame(self) -> bool:
        """A frame has begun to come, and its rest has not."""
        return bool(self._held or self.half is not None or self._data_left)

    def expect_payload(self, sink: memoryview | None, filled: int = 0, crc: int = 0) -> None:
        """The DATA frames of the next payload go into `sink`, behind what it holds already; with None they are thrown away."""
        self._sink, self.sink_filled, self.sink_crc = sink, filled, crc

    def send(self, kind: Frame, *parts: bytes | memoryview) -> None:
        """Queue one frame. The parts must not change until it has been written (see `drained`)."""
        if self.is_closed:
            return
        length = sum(map(len, parts))
        control = FRAME_HEADER.size + (0 if kind is Frame.DATA else length)
        self.meter.other_bytes += control
        self.line.up.pass_by(control, clock_s())  # a payload has waited for its turn (`turn`)
        head = FRAME_HEADER.pack(kind, length)
        if length <= _SCRATCH_BYTES:
            self._transport.write(b"".join((head, *parts)))  # three writes cost more than a small copy
            return
        self._transport.write(head)
        for part in parts:
            self._transport.write(part)

    async def turn(self, size: int, urgency: Urgency) -> None:
        """Return when so many bytes of a payload may be sent, at most `line.up.piece_bytes`."""
        cap = self.line.up
        place = cap.join(size, urgency)
        try:
            while (wait_s := cap.wait_of(place, clock_s())) > 0:  # noqa: ASYNC110 - it is time that it waits for, no event
                await asyncio.sleep(wait_s)
        finally:
            cap.leave(place)

    async def drained(self) -> None:
        """Return when the queue of unwritten bytes is short, or the stream is gone."""
        await self._writable.wait()

    def close(self) -> None:
        """End the stream from this side; the listener hears nothing more. What is queued is thrown away."""
        if not self.is_closed:
            self.is_closed = True
            self._writable.set()
            self._transport.abort()
            self._take_half()

    # asyncio's side

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the stream broke: {exc}" if exc else "the stream ended")

    def eof_received(self) -> bool:
        self._fail("the stream ended")
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._data_left:
            if self._sink is None:
                return _TRASH[: self._data_left]
            return self._sink[self.sink_filled : self.sink_filled + min(self._data_left, self.line.down.piece_bytes)]
        if self.half is not None:
            return memoryview(self.half.body)[self.half.filled :]
        return self._scratch[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closed:
            return
        self.received_bytes += nbytes
        wait_s = self.line.down.wait_s(nbytes, clock_s())
        if self._data_left:
            self._took_data(nbytes)
            self._rest(wait_s)
        elif self.half is not None:
            self.half.filled += nbytes
            if self.half.filled == len(self.half.body):
                self._listener.on_frame(self.half.kind, self._take_half())
        else:
            self._held += nbytes
            self._parse()

    def _rest(self, wait_s: float) -> None:
        """Read nothing for so long."""
        if wait_s > 0 and not self.is_closed and not self.rests:
            self.rests = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        self.rests = False
        if not self.is_closed:
            self._transport.resume_reading()

    def _parse(self) -> None:
        """Take whole frames out of the scratch buffer; what needs more bytes switches the receive buffer."""
        at, end = 0, self._held
        while end - at >= FRAME_HEADER.size and not self.is_closed:
            number, length = FRAME_HEADER.unpack_from(self._scratch, at)
            kind = _FRAMES.get(number)
            at += FRAME_HEADER.size
            here = min(length, end - at)
            piece = self._scratch[at : at + here]
            at += here
            if kind is Frame.DATA:
                self._start_data(length, piece)
                if self._data_left:
                    break
            elif kind is None or length > MAX_CONTROL_BYTES:
                self._fail(f"not a frame: kind {number}, {length} bytes")
            elif here == length:
                self._listener.on_frame(kind, bytes(piece))
            elif not self.may_hold(length):
                self._fail("too much of frames that have come half")
            else:
                self.half = HalfFrame(kind, bytearray(length), here, clock_s())
                self.half.body[:here] = piece
                break
        rest = end - at
        if rest:
            self._scratch[:rest] = bytes(self._scratch[at:end])
        self._held = rest

    def _take_half(self) -> bytes:
        """What has come of a frame; its memory is free again."""
        half, self.half = self.half, None
        if half is None:
            return b""
        self.may_hold(-len(half.body))
        return bytes(half.body)

    def _start_data(self, length: int, piece: memoryview) -> None:
        if self._sink is not None and self.sink_filled + length > len(self._sink):
            self._fail(f"more data than the {len(self._sink)} bytes that were offered")
            return
        self._data_left = length
        if len(piece):
            if self._sink is not None:
                self._sink[self.sink_filled : self.sink_filled + len(piece)] = piece
            self._took_data(len(piece))

    def _took_data(self, count: int) -> None:
        self._data_left -= count
        if self._sink is not None:
            self.sink_crc = zlib.crc32(self._sink[self.sink_filled : self.sink_filled + count], self.sink_crc)
        self.sink_filled += count

    def _fail(self, reason: str) -> None:
        if not self.is_closed:
            self.close()
            self._listener.on_lost(reason)


async def open_frames(
    control_path: str,
    peer: PeerId,
    protocol_name: str,
    purpose: Purpose,
    listener: FrameListener,
    prover: Prover | None = None,
) -> tuple[FrameStream, float]:
    """Open a stream to `peer` through the p2pd at `control_path`; returns it with the round trip of the greeting in seconds.

    `prover`: the run is secret. Raises StreamRefused, also for another version or token, or OSError when the own p2pd is gone.
    Safe to cancel: nothing stays open.
    """
    with ExitStack() as on_failure:
        try:
            reader, writer = await open_stream(control_path, peer, protocol_name)
            on_failure.callback(writer.transport.abort)
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
    while await reader.read(_SCRATCH_BYTES):
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
