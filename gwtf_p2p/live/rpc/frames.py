"""One stream between two peers, cut into frames.

Both ends reach it through a unix socket of their own p2pd, or it is a direct one (`live/direct`). It is taken over from
asyncio's StreamReader by a buffered protocol, because the reader costs two copies of every byte and stalls at its limit of 64
KiB: here the bytes of a payload are received straight into the buffer that the application gets (measured by
experiments/bench/hop.py).

    frame = kind (1 byte) . length of the body (4 bytes, big endian) . body

Rules of the transport:
- Before the first frame come the greetings (`greeting`). A stream that stalls at birth (1 in 25 first calls between two NATed
  peers stalls for exactly 10 s, measured) is given up and reopened before anything was said on it.
- Only the opener ends a stream: p2pd resets a stream right after closing it and the reset can overtake the data, so an acceptor
  that ended first would lose its last bytes in silence (2 of 7,000, measured).
- A payload travels as DATA frames and ends with END, which carries length and CRC-32. The CRC is there against lost bytes, not
  against malice: libp2p already authenticates every byte between the two peer ids, and who wants to send a wrong tensor can
  hash it just as well. CRC-32 runs at 5 GB/s here, sha256 at 1.8, blake2b at 1.0. On a direct stream it is 0: no byte gets past
  TLS that was not sent.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, cast

from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.core.sending import Urgency

FRAME_HEADER = struct.Struct(">BI")
END_BODY = struct.Struct(">QI")
MAX_CONTROL_BYTES = 1 << 20
CHUNK_BYTES = 1 << 19
TURN_BYTES = 1 << 19
"""After so many bytes of a payload a direct stream lets the event loop go on to others: it would read for as long as there is
something, up to 8 MB in a row. The small buffers of p2pd's sockets prevent that."""

clock_s = time.perf_counter
"""For durations only. uvloop's own `loop.time()` counts whole milliseconds; a call takes 0.06."""

SCRATCH_BYTES = 4096
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


class FrameListener(Protocol):
    """Who hears what arrives on a stream. Called from the event loop; must not block."""

    def on_frame(self, kind: Frame, body: bytes) -> None:
        """A whole frame other than DATA has arrived."""

    def on_lost(self, reason: str) -> None:
        """The stream is gone; called exactly once, unless it was closed from this side."""


class _Nobody:
    """Hears a stream that has ended, whose listener and buffers would else wait, with it, for Python's garbage collector: with
    what a TLS connection holds, and for many minutes, since what a peer imports makes whole collections rare."""

    def on_frame(self, kind: Frame, body: bytes) -> None: ...

    def on_lost(self, reason: str) -> None: ...


_NOBODY, _ENDED = _Nobody(), asyncio.Transport()


@dataclass(slots=True)
class HalfFrame:
    """A frame that has begun to come at `began_s` (by `clock_s`): `filled` bytes of its body."""

    kind: Frame
    body: bytearray
    filled: int
    began_s: float


class FrameStream(asyncio.BufferedProtocol):
    """Frames over one transport. Build it with `greeting.open_frames` or, on the accepting side, `greeting.accept_frames`.

    `meter` counts what is sent, `line` bounds what passes; whoever has one for all streams puts it in the place of the stream's
    own. Where payloads come faster than they may, nothing is read for a while: libp2p then holds the sender back. `may_hold` is
    asked whether a frame of which half has come may take its length, and told with less than 0 when that is free again.
    `is_direct`: TLS of our own is below it, and p2pd is not.
    """

    def __init__(self, writer: asyncio.StreamWriter, listener: FrameListener) -> None:
        self._writer: asyncio.StreamWriter | None = writer  # kept: one that is collected closes its transport
        self._transport = cast(asyncio.Transport, writer.transport)
        self._before: asyncio.BaseProtocol | None = self._transport.get_protocol()
        self._listener = listener
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._held = 0
        self.half: HalfFrame | None = None
        self.may_hold: Callable[[int], bool] = lambda more: True
        self._data_left = 0
        self._sink: memoryview | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_closed = self.is_direct = False
        self.meter, self.line = Meter(), Line()
        self.rests = False
        self.received_bytes = self._in_a_row = 0
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
        if length <= SCRATCH_BYTES:
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
            self._listener, self.may_hold, self._sink = _NOBODY, lambda more: True, None

    # asyncio's side

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the stream broke: {exc}" if exc else "the stream ended")
        before, self._before, self._writer, self._transport = self._before, None, None, _ENDED
        if isinstance(before, asyncio.Protocol):
            before.connection_lost(None)  # it has read the greeting, and holds the connection until it hears of its end

    def eof_received(self) -> bool:
        self._fail("the stream ended")
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.is_closed:
            return _TRASH
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
            self._in_a_row += nbytes
            if wait_s > 0 or (self.is_direct and self._in_a_row >= TURN_BYTES):
                self._rest(wait_s)
        elif self.half is not None:
            self.half.filled += nbytes
            if self.half.filled == len(self.half.body):
                self._listener.on_frame(self.half.kind, self._take_half())
        else:
            self._held += nbytes
            self._parse()

    def _rest(self, wait_s: float) -> None:
        """Read nothing for so long; 0 lets others take their turn."""
        if not self.is_closed and not self.rests:
            self.rests = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        self.rests, self._in_a_row = False, 0
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
        if self._sink is not None and not self.is_direct:
            self.sink_crc = zlib.crc32(self._sink[self.sink_filled : self.sink_filled + count], self.sink_crc)
        self.sink_filled += count

    def _fail(self, reason: str) -> None:
        if not self.is_closed:
            listener = self._listener
            self.close()
            listener.on_lost(reason)
