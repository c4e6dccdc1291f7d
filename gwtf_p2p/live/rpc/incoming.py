"""The accepting end of the data plane: what other peers' streams bring.

Life of a stream: IDLE -OFFER-> RECEIVING (accepted) or DISCARDING (refused) -END or ABORT-> IDLE; a CALL is answered while
IDLE. Anything else is a breach of the protocol and ends the stream. A payload is received into memory that is allocated when it
is accepted, never before (`acceptor`).

A transfer with a number may outlive its stream: on PAUSE, and when the stream breaks, what has come is parked, and RESUME on
another stream of the same sender takes it up where it stopped (STAND says where). That is how a payload gets through stage
peers that cut every circuit after some bytes, and how a link moves from a stage peer to a direct path under way. See
`rpc_outgoing`.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from enum import Enum, auto

import numpy as np

from gwtf_p2p.live.rpc.acceptor import Acceptor, Transfer
from gwtf_p2p.live.rpc.api import FailureKind, Header, pack, unpack
from gwtf_p2p.live.rpc.frames import END_BODY, Frame, FrameStream, clock_s
from gwtf_p2p.live.rpc.greeting import Purpose
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.stream_quotas import over

OFFER_HEAD = struct.Struct(">QQ")
"""Length of the payload, and the number of the transfer: 0 when it ends with its stream."""
TRANSFER_NUMBER = struct.Struct(">Q")


class _State(Enum):
    IDLE = auto()
    RECEIVING = auto()
    DISCARDING = auto()


class IncomingStream:
    """Hears the frames of one accepted stream (see `rpc_stream.FrameListener`)."""

    def __init__(self, sender: PeerId, acceptor: Acceptor, purpose: Purpose, *, is_direct: bool = False) -> None:
        self.sender, self.purpose, self.is_direct = sender, purpose, is_direct
        self.heard_s = clock_s()
        self.frames: FrameStream | None = None
        self._acceptor = acceptor
        self._state = _State.IDLE
        self._transfer: Transfer | None = None
        self._progress: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._progress is not None:
            self._progress.cancel()
        transfer = self._pause()
        if transfer is not None:
            self._acceptor.holds(self.sender, -len(transfer.payload))
        if self.frames is not None:
            self.frames.close()
        self._acceptor.remove(self)

    def end(self, reason: str) -> None:
        """End it from this side; what it was bringing is broken."""
        if self.frames is not None:
            self.frames.close()
        self.on_lost(reason)

    def watch_progress(self, seen_bytes: int = -1) -> None:
        """Look again and again whether the stream is to be ended: it would hold its memory for ever."""
        frames = self.frames
        if frames is None or frames.is_closed:
            return
        why = self._why_dead(frames, seen_bytes)
        if why:
            self.end(why)
            return
        loop, wait_s = asyncio.get_running_loop(), self._acceptor.options.half_frame_s
        self._progress = loop.call_later(wait_s, self.watch_progress, frames.received_bytes)

    def _why_dead(self, frames: FrameStream, seen_bytes: int) -> str:
        """Empty when it is not. `seen_bytes`: what had come when this was asked last."""
        options = self._acceptor.options
        if frames.received_bytes != seen_bytes:
            self.heard_s = clock_s()
            is_late = frames.half is not None and self.heard_s - frames.half.began_s > options.whole_frame_s
            return "a frame that does not come whole" if is_late else ""
        if frames.is_mid_frame and not frames.rests:
            return "half a frame, and then nothing"
        is_quiet = self.purpose is not Purpose.WATCH and not frames.rests and clock_s() - self.heard_s > options.idle_accepted_s
        return "nothing is said on it" if is_quiet else ""

    def on_lost(self, reason: str) -> None:
        if self._progress is not None:
            self._progress.cancel()
        transfer = self._pause()
        self._settle()
        self._acceptor.remove(self)
        if transfer is not None and transfer.number:
            self._acceptor.park(self.sender, transfer, reason, is_brief=self.is_direct)
        elif transfer is not None:
            self._acceptor.holds(self.sender, -len(transfer.payload))
            self._acceptor.service_for(transfer.header).on_broken(self.sender, transfer.header, reason)

    def give_up_transfer(self, number: int) -> Transfer | None:
        """What this stream has received of a transfer that goes on elsewhere; the stream ends."""
        if self._transfer is None or self._transfer.number != number:
            return None
        transfer = self._pause()
        self.close()
        return transfer

    def on_frame(self, kind: Frame, body: bytes) -> None:
        try:
            if kind is Frame.OFFER and self._state is _State.IDLE:
                self._offer(body)
            elif kind is Frame.CALL and self._state is _State.IDLE:
                self._call(body)
            elif kind is Frame.END and self._state is not _State.IDLE:
                self._end(body)
            elif kind is Frame.ABORT and self._state is not _State.IDLE:
                self._abort(body.decode(errors="replace") or "the sender gave up")
            elif kind is Frame.PAUSE and self._state is not _State.IDLE:
                self._stand(self._pause())
            elif kind is Frame.RESUME and self._state is _State.IDLE:
                self._resume(body)
            else:
                raise RemoteProtocolError(f"{kind.name} in state {self._state.name}")
        except RemoteProtocolError as error:
            self.end(str(error))

    def _offer(self, body: bytes) -> None:
        if len(body) < OFFER_HEAD.size:
            raise RemoteProtocolError("OFFER without a length")
        length, number = OFFER_HEAD.unpack_from(body)
        header = unpack(memoryview(body)[OFFER_HEAD.size :])
        reply = self._decide(header, length)
        payload = None
        if reply.get("accepted") is True:
            try:
                payload = np.empty(length, np.uint8).data  # not bytearray: that would write every page twice
            except MemoryError:
                self._acceptor.service_for(header).on_broken(self.sender, header, "too little memory")
                reply = {**_refusal("too little memory"), "verdict": "BUSY"}
        if payload is not None:
            self._acceptor.holds(self.sender, length)
            self._receive(Transfer(number, header, payload, reply, clock_s()))
        else:
            self._state = _State.DISCARDING
            self._stream.expect_payload(None)
        self._stream.send(Frame.VERDICT, pack(reply))

    def _receive(self, transfer: Transfer) -> None:
        self._state, self._transfer = _State.RECEIVING, transfer
        if transfer.filled:  # what came over another kind of stream has no checksum, or one too many
            transfer.crc = 0 if self._stream.is_direct else zlib.crc32(transfer.payload[: transfer.filled])
        self._stream.expect_payload(transfer.payload, transfer.filled, transfer.crc)

    def _pause(self) -> Transfer | None:
        """Stop receiving; what has come so far, None when nothing was being received."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.filled, transfer.crc = self._stream.sink_filled, self._stream.sink_crc
        self._settle()
        return transfer

    def _stand(self, transfer: Transfer | None) -> None:
        """Answer a PAUSE: so much has come."""
        if transfer is None:
            self._stream.send(Frame.STAND, pack({"filled": -1}))
            return
        if not transfer.number:
            raise RemoteProtocolError("PAUSE of a transfer without a number")
        self._acceptor.park(self.sender, transfer, "the sender paused")
        self._stream.send(Frame.STAND, pack({"filled": transfer.filled}))

    def _resume(self, body: bytes) -> None:
        """Take up a parked transfer, or say how it ended; `filled` is -1 when it is not known here."""
        if len(body) != TRANSFER_NUMBER.size:
            raise RemoteProtocolError("RESUME without a number")
        (number,) = TRANSFER_NUMBER.unpack(body)
        ended = self._acceptor.end_of(self.sender, number)
        if ended is not None:
            self._stream.send(Frame.STAND, pack({"filled": -1, "ended": ended}))
            return
        transfer = self._acceptor.unpark(self.sender, number)
        if transfer is None:
            self._stream.send(Frame.STAND, pack({"filled": -1}))
            return
        self._receive(transfer)
        self._stream.send(Frame.STAND, pack({"filled": transfer.filled, "reply": transfer.reply}))

    def _decide(self, header: Header, length: int) -> Header:
        options = self._acceptor.options
        if length > options.max_payload_bytes:
            return _refusal(f"{length} bytes are over the bound of {options.max_payload_bytes}")
        acceptor = self._acceptor
        full = over(options.payload_bytes, acceptor.payload_bytes, self.sender, length, acceptor.knows)
        if full:
            acceptor.refuse(self.sender, "bytes of payloads", full)
            return {**_refusal(f"too many bytes are being received already: {full}"), "verdict": "BUSY"}
        try:
            return acceptor.service_for(header).on_offer(self.sender, header, length)
        except RemoteProtocolError as error:
            return _refusal(str(error))

    def _call(self, body: bytes) -> None:
        header = unpack(body)
        try:
            reply = self._acceptor.service_for(header).on_message(self.sender, header)
        except RemoteProtocolError as error:
            self._stream.send(Frame.REPLY, b"\x01", str(error).encode())
        else:
            self._stream.send(Frame.REPLY, b"\x00", pack(reply))

    def _end(self, body: bytes) -> None:
        if len(body) != END_BODY.size:
            raise RemoteProtocolError("END without length and checksum")
        transfer = self._pause()
        if transfer is None:
            return
        self._acceptor.holds(self.sender, -len(transfer.payload))
        sent, sent_crc = END_BODY.unpack(body)
        filled, length = transfer.filled, len(transfer.payload)
        service = self._acceptor.service_for(transfer.header)
        if filled != length or (sent, sent_crc) != (filled, transfer.crc):
            checksum = "equal" if sent_crc == transfer.crc else "differs"
            reason = f"{filled} of {length} bytes, {sent} sent, checksum {checksum}"
            self._acknowledge(transfer, FailureKind.CORRUPT, reason)
            service.on_broken(self.sender, transfer.header, f"corrupt: {reason}")
            return
        try:
            service.on_delivery(self.sender, transfer.header, transfer.payload)
        except RemoteProtocolError as error:
            self._acknowledge(transfer, FailureKind.REFUSED, str(error))
        else:
            self._acknowledge(transfer, None, "")

    def _acknowledge(self, transfer: Transfer, failure: FailureKind | None, reason: str) -> None:
        receive_s = clock_s() - transfer.offered_s
        body = {"failure": failure.value if failure else None, "reason": reason, "receive_s": receive_s}
        if transfer.number:
            self._acceptor.remember_end(self.sender, transfer.number, {**body, "reply": transfer.reply})
        self._stream.send(Frame.ACK, pack(body))

    def _abort(self, reason: str) -> None:
        transfer = self._pause()
        if transfer is not None:
            self._acceptor.holds(self.sender, -len(transfer.payload))
            self._acceptor.service_for(transfer.header).on_broken(self.sender, transfer.header, reason)

    def _settle(self) -> None:
        """Back to IDLE."""
        if self._state is _State.RECEIVING:
            self._stream.expect_payload(None)
        self._state = _State.IDLE

    @property
    def _stream(self) -> FrameStream:
        assert self.frames is not None, "frames arrive only on a stream that was taken over"
        return self.frames


def _refusal(reason: str) -> Header:
    return {"accepted": False, "verdict": "REFUSED", "reason": reason}
