"""One payload to one peer, over as many streams as it takes.

On a good path that is one stream: OFFER, DATA, END, and the peer's VERDICT and ACK. On a fragile one (`Ways.is_fragile`) the
transfer has a number, and goes on where it stopped when its stream breaks; and before the budget of a circuit is used up, it
pauses (PAUSE is answered when everything before it has come), the circuit is replaced, and it goes on. So it has on a direct
stream (`live/direct`): where that breaks, p2pd carries the rest; the end of p2pd's stream is news of the peer as ever.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gwtf_p2p.live.rpc.api import FailureKind, Header, PushResult, RpcFailed, unpack
from gwtf_p2p.live.rpc.frames import CHUNK_BYTES, END_BODY, Frame, FrameStream, clock_s
from gwtf_p2p.live.rpc.incoming import OFFER_HEAD, TRANSFER_NUMBER
from gwtf_p2p.live.rpc.outgoing import NotTaken, OutgoingStream, StreamLost, StreamPool, Ways, send_header
from gwtf_p2p.protocol.core.sending import urgency_of
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

FRUITLESS_TRIES = 4
"""So many streams in a row that carried nothing end a transfer."""

FIRST_PAUSE_S = 0.5
"""After an attempt that found no path, doubled each time: p2pd dials no address again within 5 s of a failure."""


@dataclass(slots=True)
class _Progress:
    """What the sender knows of its transfer. `arrived`: bytes that surely came; `offered_s`: when its header went out."""

    arrived: int = 0
    sent: int = 0
    reply: Header | None = None
    round_trip_s: float = 0.0
    offered_s: float = 0.0
    is_offered: bool = False
    is_paused: bool = False


LEAST_DIRECT_BYTES = 1024
"""What is smaller goes through p2pd: the handshakes of a direct stream cost more than they save."""

Gate = Callable[[], Awaitable[None]]
"""Awaited, once the payload is accepted and sent, before the end that makes it count (emulated links: see `emulation`)."""


class Push:
    """One transfer from its offer to its end. A `gate` needs `eager=False`.

    `sent_bytes` are those of all tries, `PushResult.sent_bytes` those of the payload.
    """

    def __init__(self, pool: StreamPool, ways: Ways, to: PeerId, header: Header, payload: memoryview, *, eager: bool) -> None:
        self._pool, self._ways, self._to = pool, ways, to
        self._header, self._payload, self._eager = header, payload, eager
        self._urgency = urgency_of(str(header.get("kind")))
        self._number = secrets.randbits(63) | 1 if ways.is_fragile(to) else 0
        self._progress = _Progress()
        self.opened = False
        self._is_direct, self._may_be_direct = False, len(payload) >= LEAST_DIRECT_BYTES
        self.sent_bytes = 0
        self.gate: Gate | None = None

    async def run(self) -> PushResult:
        """Raises StreamLost, RpcFailed, NotTaken, RemoteProtocolError."""
        fruitless = 0
        while True:
            before = self._progress.arrived
            try:
                return await self._on_a_stream()
            except (StreamLost, RpcFailed) as error:
                if self._is_direct and isinstance(error, StreamLost):
                    self._is_direct = self._may_be_direct = False
                    self._pool.lost_direct(self._to, str(error))
                    continue
                fruitless = fruitless + 1 if self._progress.arrived == before else 0
                if fruitless >= FRUITLESS_TRIES or not self._goes_on():
                    raise
                if isinstance(error, RpcFailed):
                    await asyncio.sleep(FIRST_PAUSE_S * 2**fruitless)
            if self._progress.is_paused:
                self._progress.is_paused = False
                await self._ways.renew(self._to)

    def _goes_on(self) -> bool:
        if not self._number and self._ways.is_fragile(self._to):
            self._number = secrets.randbits(63) | 1  # the path has changed since: begin anew, and keep what comes from now on
            self._progress = _Progress()
        return bool(self._number) and self._ways.is_fragile(self._to)

    async def _on_a_stream(self) -> PushResult:
        async with self._pool.stream(self._to, self._urgency, may_be_direct=self._may_be_direct) as stream:
            frames = stream.frames
            assert frames is not None, "a stream is handed out open"
            self._is_direct = frames.is_direct
            if not self.opened and not self._number and (frames.is_direct or self._ways.is_fragile(self._to)):
                self._number = secrets.randbits(63) | 1  # what the path is like is known only now
            self.opened = True
            if self._progress.is_offered:
                ended = await self._resume(stream, frames)
                if ended is not None:
                    return self._result(ended, clock_s())
            if not self._progress.is_offered:
                self._offer(frames)
                if not self._eager:
                    await self._hear_verdict(stream)
            await self._send_rest(stream, frames)
            if self._progress.reply is None:
                await self._hear_verdict(stream)
            if not self._is_accepted:
                seconds = self._progress.round_trip_s
                return PushResult(self._progress.reply or {}, False, self._progress.sent, seconds, seconds, 0.0)
            body, arrived_s = await stream.receive(Frame.ACK)
            return self._result(unpack(body), arrived_s)

    def _offer(self, frames: FrameStream) -> None:
        self._progress.is_offered, self._progress.offered_s = True, clock_s()
        send_header(frames, Frame.OFFER, self._header, OFFER_HEAD.pack(len(self._payload), self._number))

    async def _send_rest(self, stream: OutgoingStream, frames: FrameStream) -> None:
        """From what has arrived to the end, or until the offer is refused. Raises StreamLost when the path must be renewed."""
        progress, payload = self._progress, self._payload
        offset = progress.arrived
        crc = 0 if frames.is_direct else zlib.crc32(payload[:offset])
        while offset < len(payload):
            if progress.reply is None and stream.has(Frame.VERDICT):
                await self._hear_verdict(stream)
            if stream.lost_reason or (progress.reply is not None and not self._is_accepted):
                break
            piece = min(CHUNK_BYTES, frames.line.up.piece_bytes, len(payload) - offset)
            allowed = self._ways.allowance(self._to, piece)
            if allowed <= 0:
                await self._pause(stream, frames)
                if self._is_accepted:
                    raise StreamLost("the path is renewed")
                break
            await frames.turn(allowed, self._urgency)
            chunk = payload[offset : offset + allowed]
            crc = 0 if frames.is_direct else zlib.crc32(chunk, crc)
            frames.send(Frame.DATA, chunk)
            offset += len(chunk)
            self._pool.meter.direct_bytes += len(chunk) if frames.is_direct else 0
            progress.sent += len(chunk)
            self.sent_bytes += len(chunk)
            await frames.drained()
        if offset == len(payload):
            if self.gate is not None and self._is_accepted:
                gate, self.gate = self.gate, None
                await _unless_lost(stream, gate)
            frames.send(Frame.END, END_BODY.pack(offset, crc))
        else:
            frames.send(Frame.ABORT, b"refused")

    async def _pause(self, stream: OutgoingStream, frames: FrameStream) -> None:
        """Return when everything that was sent has come."""
        if self._progress.reply is None:
            await self._hear_verdict(stream)
        if not self._is_accepted:
            return
        frames.send(Frame.PAUSE)
        body, _ = await stream.receive(Frame.STAND)
        self._progress.arrived = _filled(unpack(body), len(self._payload))
        self._progress.is_paused = True

    async def _resume(self, stream: OutgoingStream, frames: FrameStream) -> Header | None:
        """Take the transfer up on a new stream; its acknowledgement if it had ended already."""
        asked_s = clock_s()
        frames.send(Frame.RESUME, TRANSFER_NUMBER.pack(self._number))
        body, arrived_s = await stream.receive(Frame.STAND)
        if not self._progress.round_trip_s:  # the offer's was not heard
            self._progress.round_trip_s = arrived_s - asked_s
        stand = unpack(body)
        ended, filled = stand.get("ended"), _filled(stand, len(self._payload))
        if isinstance(ended, dict):
            self._progress.reply = ended.get("reply") if isinstance(ended.get("reply"), dict) else {"accepted": True}
            return ended
        if filled < 0:  # the offer never came, or was not kept
            self._progress = _Progress(sent=self._progress.sent)
        else:
            self._progress.arrived = filled
            reply = stand.get("reply")
            self._progress.reply = reply if isinstance(reply, dict) else {"accepted": True}
        return None

    async def _hear_verdict(self, stream: OutgoingStream) -> None:
        body, arrived_s = await stream.receive(Frame.VERDICT)
        self._progress.reply = unpack(body)
        self._progress.round_trip_s = arrived_s - self._progress.offered_s

    @property
    def _is_accepted(self) -> bool:
        return self._progress.reply is not None and self._progress.reply.get("accepted") is True

    def _result(self, acknowledged: Header, arrived_s: float) -> PushResult:
        """Raises NotTaken, RemoteProtocolError."""
        failure, receive_s = acknowledged.get("failure"), acknowledged.get("receive_s")
        if failure is not None:
            kind = FailureKind.REFUSED if failure == FailureKind.REFUSED.value else FailureKind.CORRUPT
            raise NotTaken(kind, str(acknowledged.get("reason")))
        if not isinstance(receive_s, float):
            raise RemoteProtocolError(f"ACK: receive_s: expected a number, got {receive_s!r:.40}")
        progress = self._progress
        seconds = arrived_s - progress.offered_s
        waited = not self._eager
        return PushResult(progress.reply or {}, True, len(self._payload), seconds, progress.round_trip_s, receive_s, waited)


async def _unless_lost(stream: OutgoingStream, gate: Gate) -> None:
    """Raises StreamLost as soon as the stream breaks."""
    opening, lost = asyncio.ensure_future(gate()), asyncio.ensure_future(stream.lost())
    try:
        await asyncio.wait((opening, lost), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            raise StreamLost(stream.lost_reason)
        opening.result()
    finally:
        opening.cancel()
        lost.cancel()


def _filled(stand: Header, length: int) -> int:
    filled = stand.get("filled")
    if not isinstance(filled, int) or not -1 <= filled <= length:
        raise RemoteProtocolError(f"STAND: filled: expected -1 to {length}, got {filled!r:.40}")
    return filled
