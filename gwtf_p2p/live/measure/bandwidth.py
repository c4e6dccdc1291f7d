"""Megabytes through a path, both ways: a ping proves nothing about the line that activations will take.

Every peer of ours serves `gwtf/speed/1`: a request is one letter and a count, `U` (the bytes follow, and their count is sent
back) or `D` (so many bytes are sent). A few at a time and so many a minute, so that nobody can spend a bootstrap peer's line
on it; more is answered by closing the stream. Peers of other programs are measured by libp2p's ping, which sends back whatever
comes in blocks of 32 bytes: both ways at once, and at most 2-5 MB/s (measured on loopback), so that figure is a lower bound.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import StreamRefused, open_stream
from gwtf_p2p.protocol.core.line_cap import Line, LineCap
from gwtf_p2p.protocol.ids import PeerId

PROTOCOL = "gwtf/speed/1"
PING = "/ipfs/ping/1.0.0"

MOST_BYTES = 8 << 20
"""Of one request."""
BYTES_PER_MINUTE = 256 << 20
"""That a peer serves, to all together."""

MOST_AT_ONCE = 8

_FIRST_BYTES = 512 << 10
_ENOUGH_S = 0.4
"""A transfer that took longer says enough; a shorter one is repeated with four times as many bytes."""

_REQUEST = struct.Struct(">cQ")
_COUNT = struct.Struct(">Q")
_CHUNK_BYTES = 1 << 18
_SERVE_S = 60.0


class SpeedUnknown(Exception):
    """The peer does not answer, or does not measure; the text says which."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes per second away from this machine and towards it, and how many bytes were sent for it.

    `echoed`: both are the same figure, of an echo, and lower bounds. `cut_after`: the path broke after so many bytes of one
    transfer (a circuit relay's budget, most likely); 0 if it held.
    """

    up_bytes_per_s: float
    down_bytes_per_s: float
    moved_bytes: int
    echoed: bool = False
    cut_after: int = 0


class _Cut(Exception):
    """The stream ended after so many bytes, in so many seconds."""

    def __init__(self, moved: int, seconds: float) -> None:
        self.moved, self.seconds = moved, seconds
        super().__init__(f"cut after {moved} bytes")


async def serve_speed(daemon: Daemon, line: Line | None = None, may_serve: Callable[[], bool] = lambda: True) -> None:
    """Answer measurements from now on, within what may pass on the line, while `may_serve` says so."""
    await daemon.p2p.add_binary_stream_handler(PROTOCOL, _Server(line or Line(), may_serve).handle)


async def measure_speed(daemon: Daemon, peer: PeerId, limit_s: float) -> Speed:
    """Through whatever connection there is to the peer, in at most about `limit_s`. Raises SpeedUnknown."""
    try:
        async with asyncio.timeout(limit_s):
            try:
                return await _measure_both(daemon, peer)
            except _NOT_SERVED:
                return await _measure_echo(daemon, peer)
    except (TimeoutError, _Cut, *_NOT_SERVED) as error:
        raise SpeedUnknown(f"{peer[-6:]}: {error or 'no answer in time'}") from error


_NOT_SERVED = (StreamRefused, OSError, asyncio.IncompleteReadError)


async def _measure_both(daemon: Daemon, peer: PeerId) -> Speed:
    """Raises what _NOT_SERVED lists when nothing at all came through."""
    cut_after, moved, rates = 0, 0, []
    for one_way in (_download, _upload):  # the download first: only the receiver knows exactly where a path was cut
        rate, count, cut = await _grow(partial(one_way, daemon, peer))
        rates.append(rate)
        moved += count
        cut_after = cut_after or cut
    return Speed(rates[1], rates[0], moved, cut_after=cut_after)


async def _measure_echo(daemon: Daemon, peer: PeerId) -> Speed:
    rate, moved, cut = await _grow(partial(_echo, daemon, peer), most=4 << 20)
    return Speed(rate, rate, 2 * moved, echoed=True, cut_after=cut)


async def _grow(transfer: Callable[[int], Awaitable[float]], most: int = MOST_BYTES) -> tuple[float, int, int]:
    """Bytes per second of the largest transfer, bytes moved in all, and after how many one was cut (0: none)."""
    size, moved = _FIRST_BYTES, 0
    empty_s = min(await transfer(0), await transfer(0))
    while True:
        try:
            seconds = await transfer(size)
        except _Cut as cut:
            return _rate(cut.moved, cut.seconds, empty_s), moved + cut.moved, cut.moved
        moved += size
        if seconds >= _ENOUGH_S or size >= most:
            return _rate(size, seconds, empty_s), moved, 0
        size = min(most, 4 * size)


def _rate(size: int, seconds: float, empty_s: float) -> float:
    """Without the round trip that an empty transfer takes; should that have been slow by chance, half of the time counts."""
    return size / max(seconds - min(empty_s, seconds / 2), 1e-6)


async def _download(daemon: Daemon, peer: PeerId, size: int) -> float:
    reader, writer = await open_stream(daemon.control_path, peer, PROTOCOL)
    try:
        begin = time.perf_counter()
        writer.write(_REQUEST.pack(b"D", size))
        await _read_all(reader, size + _COUNT.size, begin)
        return time.perf_counter() - begin
    finally:
        writer.transport.abort()


async def _upload(daemon: Daemon, peer: PeerId, size: int) -> float:
    reader, writer = await open_stream(daemon.control_path, peer, PROTOCOL)
    try:
        begin = time.perf_counter()
        sent = 0
        try:
            writer.write(_REQUEST.pack(b"U", size))
            for start in range(0, size, _CHUNK_BYTES):
                writer.write(bytes(min(_CHUNK_BYTES, size - start)))
                await writer.drain()
                sent = start
            await reader.readexactly(_COUNT.size)
        except (OSError, asyncio.IncompleteReadError) as error:
            if not size:
                raise
            raise _Cut(sent, time.perf_counter() - begin) from error
        return time.perf_counter() - begin
    finally:
        writer.transport.abort()


async def _echo(daemon: Daemon, peer: PeerId, size: int) -> float:
    reader, writer = await open_stream(daemon.control_path, peer, PING)
    try:
        begin = time.perf_counter()
        writer.write(bytes(size or 32))
        await _read_all(reader, size or 32, begin)
        return time.perf_counter() - begin
    finally:
        writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader, size: int, begin: float) -> None:
    """Read and forget. Raises _Cut when the stream ends early, IncompleteReadError when nothing came at all."""
    left = size
    while left:
        try:
            chunk = await reader.read(min(left, _CHUNK_BYTES))
        except OSError:
            chunk = b""
        if not chunk and left == size:
            raise asyncio.IncompleteReadError(b"", size)
        if not chunk:
            raise _Cut(size - left, time.perf_counter() - begin)
        left -= len(chunk)


class _Server:
    """Serves a few measurements at a time, and so many bytes a minute."""

    def __init__(self, line: Line, may_serve: Callable[[], bool]) -> None:
        self._line, self._may_serve = line, may_serve
        self._serving = 0
        self._minute = -1
        self._left = 0

    async def handle(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving += 1
        try:
            async with asyncio.timeout(_SERVE_S):
                way, size = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
                if self._serving <= MOST_AT_ONCE and self._admits(size):
                    serve, cap = (_give, self._line.up) if way == b"D" else (_take, self._line.down)
                    await serve(reader, writer, size, cap)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass  # whoever measures sees that the stream ended
        finally:
            self._serving -= 1
            writer.transport.abort()

    def _admits(self, size: int) -> bool:
        minute = int(time.monotonic() / 60)
        if minute != self._minute:
            self._minute, self._left = minute, BYTES_PER_MINUTE
        if size > min(MOST_BYTES, self._left) or not self._may_serve():
            return False
        self._left -= size
        return True


async def _give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, cap: LineCap) -> None:
    piece = min(_CHUNK_BYTES, cap.piece_bytes)
    for start in range(0, size, piece):
        await asyncio.sleep(cap.wait_s(min(piece, size - start), time.perf_counter()))
        writer.write(bytes(min(piece, size - start)))
        await writer.drain()
    writer.write(_COUNT.pack(size))
    await writer.drain()
    await reader.read(1)  # the other end closes when it has everything: closing first could cost the tail


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, cap: LineCap) -> None:
    left = size
    while left and (chunk := await reader.read(min(left, _CHUNK_BYTES, cap.piece_bytes))):
        left -= len(chunk)
        await asyncio.sleep(cap.wait_s(len(chunk), time.perf_counter()))
    if not left:
        writer.write(_COUNT.pack(size))
        await writer.drain()
        await reader.read(1)
