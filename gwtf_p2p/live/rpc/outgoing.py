"""The opening end of the data plane: streams to other peers, kept and used again.

A stream carries one push or call at a time; several at once use several streams, up to a limit, and then wait. Keeping streams
is what makes small transfers quick: a call over an open stream takes 0.06 ms here, hivemind's unary call 0.5 ms, and opening a
stream 1-3 ms (experiments/bench/hop.py). A stream on which anything went wrong is thrown away.

Before a stream is opened, `Ways` sees to it that there is a connection to the peer, on the best path that can be had. Payloads
go over direct streams (`live/direct`) where these can be had, and over p2pd's from the moment that one fails; calls and watches
stay with p2pd, so that what tells whether a peer is there hangs on one connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from gwtf_p2p.live.direct.direct import DirectStreams
from gwtf_p2p.live.libp2p.dialling import StreamRefused
from gwtf_p2p.live.rpc.api import FailureKind, Header, RpcFailed, RpcOptions, pack, unpack
from gwtf_p2p.live.rpc.frames import MAX_CONTROL_BYTES, Frame, FrameListener, FrameStream, clock_s
from gwtf_p2p.live.rpc.greeting import Purpose, greet, open_frames
from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.live.rpc.proving import Prover
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.core.sending import Place, SendSlots, Urgency
from gwtf_p2p.protocol.ids import PeerId

_KEPT_STREAMS = 2
_KEPT_DIRECT = 4
"""Each took two handshakes."""

_TRIES = 3
"""For a stream to a peer whose circuits come and go: one may end just when it is to be used."""


class Ways(Protocol):
    """How this peer gets to others; see `paths.Paths`."""

    async def ready(self, peer: PeerId) -> None:
        """Return when there is a connection, or p2pd may find one by itself. Raises RpcFailed (UNREACHABLE)."""

    def is_fragile(self, peer: PeerId) -> bool:
        """Whether a broken stream is no news about the peer: its path is relayed, punched, or being changed."""

    def allowance(self, peer: PeerId, wanted: int) -> int:
        """How many of so many bytes may be sent on the path as it is; they count as sent. 0: it must be renewed first."""

    async def renew(self, peer: PeerId) -> None:
        """Another circuit in place of one whose budget is at its end."""


class PlainWays:
    """p2pd alone finds the way: peers of one machine or one local network."""

    async def ready(self, peer: PeerId) -> None: ...

    def is_fragile(self, peer: PeerId) -> bool:
        return False

    def allowance(self, peer: PeerId, wanted: int) -> int:
        return wanted

    async def renew(self, peer: PeerId) -> None: ...


class StreamLost(Exception):
    """The stream broke while an answer was awaited."""


class OutgoingStream:
    """Hears the frames of one stream that this peer opened (see `rpc_stream.FrameListener`)."""

    def __init__(self, on_lost: Callable[[OutgoingStream], None]) -> None:
        self.frames: FrameStream | None = None
        self.idle_timer: asyncio.TimerHandle | None = None
        self.lost_reason = ""
        self._on_lost = on_lost
        self._arrived: dict[Frame, tuple[bytes, float]] = {}
        self._news = asyncio.Event()

    def on_frame(self, kind: Frame, body: bytes) -> None:
        self._arrived[kind] = (body, clock_s())
        self._news.set()

    def on_lost(self, reason: str) -> None:
        self.lost_reason = reason
        self._news.set()
        self._on_lost(self)

    def has(self, kind: Frame) -> bool:
        return kind in self._arrived

    async def lost(self) -> None:
        """Return when the stream is gone. Not while something else waits for a frame."""
        while not self.lost_reason:
            self._news.clear()
            await self._news.wait()

    async def receive(self, kind: Frame) -> tuple[bytes, float]:
        """The next frame of that kind and the time (`clock_s`) of its arrival. Raises StreamLost."""
        while kind not in self._arrived:
            if self.lost_reason:
                raise StreamLost(self.lost_reason)
            self._news.clear()
            await self._news.wait()
        return self._arrived.pop(kind)

    @property
    def is_clean(self) -> bool:
        """Nothing is left over from the last exchange."""
        return not self._arrived and not self.lost_reason and self.frames is not None and not self.frames.is_closed

    @property
    def is_direct(self) -> bool:
        return self.frames is not None and self.frames.is_direct

    def close(self) -> None:
        if self.idle_timer is not None:
            self.idle_timer.cancel()
        if self.frames is not None:
            self.frames.close()


class StreamPool:
    """Streams to every peer that this one talks to."""

    def __init__(
        self,
        control_path: str,
        protocol_name: str,
        options: RpcOptions,
        ways: Ways,
        line: Line,
        *,
        prover: Prover | None = None,
        direct: DirectStreams | None = None,
    ) -> None:
        self._ways, self.prover, self._direct = ways, prover, direct
        self.meter, self.line = Meter(), line
        self._control_path = control_path
        self._protocol_name = protocol_name
        self._options = options
        self._idle: dict[PeerId, list[OutgoingStream]] = {}
        self._call_slots: dict[PeerId, asyncio.Semaphore] = {}
        self._send_slots: dict[PeerId, SendSlots] = {}
        self._waiting: dict[Place, asyncio.Future[None]] = {}
        self._in_use: dict[OutgoingStream, PeerId] = {}

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, urgency: Urgency | None = None, *, may_be_direct: bool = False
    ) -> AsyncIterator[OutgoingStream]:
        """A stream for one exchange, a payload's of some urgency or a call. Calls have slots of their own, so that no number of
        pushes can hold them up.

        Raises RpcFailed when none can be opened. After an error or a cancellation inside, the stream is thrown away.
        """
        most = self._options.max_streams_per_peer
        calls = self._call_slots.setdefault(peer, asyncio.Semaphore(most))
        slot: AbstractAsyncContextManager[object] = calls if urgency is None else self._send_slot(peer, urgency, most)
        async with slot:
            direct = await self._direct_stream(peer) if may_be_direct else None
            stream = direct or self._take_idle(peer, is_direct=False) or await self._open(peer)
            self._in_use[stream] = peer
            done = False
            try:
                yield stream
                done = True
            finally:
                self._in_use.pop(stream, None)
                if done and stream.is_clean:
                    self._keep(peer, stream)
                else:
                    stream.close()

    @asynccontextmanager
    async def _send_slot(self, peer: PeerId, urgency: Urgency, most: int) -> AsyncIterator[None]:
        slots = self._send_slots.setdefault(peer, SendSlots(most))
        place = slots.ask(urgency)
        try:
            if not place.has_slot:
                self._waiting[place] = asyncio.get_running_loop().create_future()
                await self._waiting[place]
            yield
        finally:
            self._waiting.pop(place, None)
            for other in slots.free(place):
                future = self._waiting.get(other)
                if future is not None and not future.done():
                    future.set_result(None)

    def close(self) -> None:
        """End all streams; whoever waits on one gets StreamLost."""
        for stream in list(self._in_use):
            stream.close()
            stream.on_lost("this peer is leaving")
        for streams in list(self._idle.values()):
            for stream in streams:
                stream.close()
        self._idle.clear()

    def is_idle(self, peer: PeerId | None = None) -> bool:
        return peer not in self._in_use.values() if peer is not None else not self._in_use

    def drop_idle(self, peer: PeerId) -> None:
        """Close the kept streams to a peer: they run over a path that has a better one beside it now."""
        for stream in self._idle.pop(peer, []):
            stream.close()

    async def open(self, peer: PeerId, purpose: Purpose, listener: FrameListener) -> tuple[FrameStream, float]:
        """A new stream over whatever connection there is, with the round trip of its greeting. Raises RpcFailed.

        Whatever it is for, what passes on it counts and is capped like everything else.
        """
        path, name, first_try_s = self._control_path, self._protocol_name, self._options.first_try_s
        frames, round_trip_s = await open_with_retry(path, peer, name, purpose, listener, first_try_s, prover=self.prover)
        frames.meter, frames.line = self.meter, self.line
        return frames, round_trip_s

    async def _open(self, peer: PeerId) -> OutgoingStream:
        for _ in range(_TRIES - 1):
            await self._ways.ready(peer)
            try:
                return await self._open_once(peer)
            except RpcFailed:
                if not self._ways.is_fragile(peer):
                    raise
        await self._ways.ready(peer)
        return await self._open_once(peer)

    async def _open_once(self, peer: PeerId) -> OutgoingStream:
        stream = OutgoingStream(lambda lost: self._forget(peer, lost))
        stream.frames, _ = await self.open(peer, Purpose.TRANSFER, stream)
        return stream

    async def _direct_stream(self, peer: PeerId) -> OutgoingStream | None:
        """None when p2pd is to carry it."""
        direct = self._direct
        if direct is None or self._ways.is_fragile(peer) or not direct.is_open(peer):
            return None
        kept = self._take_idle(peer, is_direct=True)
        if kept is not None:
            return kept
        stream = OutgoingStream(lambda lost: self._forget(peer, lost))
        connection = await direct.connect(peer)
        if connection is None:
            return None
        try:
            async with asyncio.timeout(self._options.first_try_s):
                frames, _ = await greet(connection, peer, Purpose.TRANSFER, stream, self.prover)
        except (TimeoutError, StreamRefused, OSError) as error:
            direct.failed(peer, f"{str(error) or type(error).__name__}")
            return None
        frames.meter, frames.line, frames.is_direct = self.meter, self.line, True
        stream.frames = frames
        return stream

    def lost_direct(self, peer: PeerId, why: str) -> None:
        """A direct stream broke under a payload: those that are kept are likely to be broken too."""
        if self._direct is not None:
            self._direct.failed(peer, why)
        while (stream := self._take_idle(peer, is_direct=True)) is not None:
            stream.close()

    def _take_idle(self, peer: PeerId, *, is_direct: bool) -> OutgoingStream | None:
        streams = self._idle.get(peer, [])
        stream = next((stream for stream in reversed(streams) if stream.is_direct is is_direct), None)
        if stream is not None:
            streams.remove(stream)
            if stream.idle_timer is not None:
                stream.idle_timer.cancel()
        return stream

    def _keep(self, peer: PeerId, stream: OutgoingStream) -> None:
        streams = self._idle.setdefault(peer, [])
        alike = sum(other.is_direct is stream.is_direct for other in streams)
        if alike >= (_KEPT_DIRECT if stream.is_direct else _KEPT_STREAMS):
            stream.close()
            return
        loop = asyncio.get_running_loop()
        stream.idle_timer = loop.call_later(self._options.idle_stream_s, self._expire, peer, stream)
        streams.append(stream)

    def _expire(self, peer: PeerId, stream: OutgoingStream) -> None:
        self._forget(peer, stream)
        stream.close()

    def _forget(self, peer: PeerId, stream: OutgoingStream) -> None:
        streams = self._idle.get(peer, [])
        if stream in streams:
            streams.remove(stream)
        if not streams:
            self._idle.pop(peer, None)


async def open_with_retry(
    control_path: str,
    peer: PeerId,
    protocol_name: str,
    purpose: Purpose,
    listener: FrameListener,
    first_try_s: float,
    *,
    prover: Prover | None = None,
) -> tuple[FrameStream, float]:
    """`open_frames` with a bounded first try and one retry; the caller's own deadline bounds the second.

    Raises RpcFailed (UNREACHABLE).
    """
    try:
        try:
            async with asyncio.timeout(first_try_s):
                return await open_frames(control_path, peer, protocol_name, purpose, listener, prover)
        except TimeoutError:
            return await open_frames(control_path, peer, protocol_name, purpose, listener, prover)
    except (StreamRefused, OSError) as error:
        raise RpcFailed(peer, FailureKind.UNREACHABLE, str(error)) from error


async def call_on(stream: OutgoingStream, header: Header) -> Header:
    """One call over an open stream. Raises StreamLost, NotTaken (REFUSED, TOO_LARGE), or RemoteProtocolError."""
    assert stream.frames is not None, "a stream is handed out open"
    send_header(stream.frames, Frame.CALL, header)
    body, _ = await stream.receive(Frame.REPLY)
    if body[:1] != b"\x00":
        raise NotTaken(FailureKind.REFUSED, body[1:].decode(errors="replace"))
    return unpack(memoryview(body)[1:])


class NotTaken(Exception):
    """The other end says that it did not take what was sent, or never would."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


def send_header(frames: FrameStream, kind: Frame, header: Header, head: bytes = b"") -> None:
    """Raises NotTaken (TOO_LARGE)."""
    packed = pack(header)
    if len(head) + len(packed) > MAX_CONTROL_BYTES:
        reason = f"header of {len(packed)} bytes is over the bound of {MAX_CONTROL_BYTES}"
        raise NotTaken(FailureKind.TOO_LARGE, reason)
    frames.send(kind, head, packed)
