"""The accepting end of the data plane: what other peers' streams bring.

Life of a stream: IDLE -OFFER-> RECEIVING (accepted) or DISCARDING (refused) -END or ABORT-> IDLE; a CALL is answered while
IDLE. Anything else is a breach of the protocol and ends the stream. A payload is received into memory that is allocated when it
is accepted, never before, and the sum of those buffers is bounded.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto

import numpy as np

from gwtf_p2p.live.rpc_api import FailureKind, Header, RpcOptions, RpcService, pack, unpack
from gwtf_p2p.live.rpc_stream import END_BODY, Frame, FrameStream, clock_s
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

OFFER_HEAD = struct.Struct(">Q")


class Acceptor:
    """What all accepted streams share: limits, services, and who is connected."""

    def __init__(self, options: RpcOptions, service_for: Callable[[Header], RpcService]) -> None:
        self.options = options
        self.service_for = service_for
        self.inflight_bytes = 0
        self.streams: set[IncomingStream] = set()
        self._streams_of: Counter[PeerId] = Counter()

    def admits(self, sender: PeerId) -> bool:
        return self._streams_of[sender] < self.options.max_accepted_streams_per_peer

    def add(self, stream: IncomingStream) -> None:
        self.streams.add(stream)
        self._streams_of[stream.sender] += 1

    def remove(self, stream: IncomingStream) -> None:
        self.streams.discard(stream)
        self._streams_of[stream.sender] -= 1
        if not self._streams_of[stream.sender]:
            del self._streams_of[stream.sender]

    def close(self) -> None:
        """End every stream without telling the services: this peer is leaving."""
        for stream in list(self.streams):
            stream.close()


class _State(Enum):
    IDLE = auto()
    RECEIVING = auto()
    DISCARDING = auto()


class IncomingStream:
    """Hears the frames of one accepted stream (see `rpc_stream.FrameListener`)."""

    def __init__(self, sender: PeerId, acceptor: Acceptor) -> None:
        self.sender = sender
        self.frames: FrameStream | None = None
        self._acceptor = acceptor
        self._state = _State.IDLE
        self._header: Header = {}
        self._payload = memoryview(b"")
        self._offered_s = 0.0

    def close(self) -> None:
        self._settle()
        if self.frames is not None:
            self.frames.close()
        self._acceptor.remove(self)

    def on_lost(self, reason: str) -> None:
        broken = self._state is _State.RECEIVING
        header = self._header
        self._settle()
        self._acceptor.remove(self)
        if broken:
            self._acceptor.service_for(header).on_broken(self.sender, header, reason)

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
            else:
                raise RemoteProtocolError(f"{kind.name} in state {self._state.name}")
        except RemoteProtocolError as error:
            if self.frames is not None:
                self.frames.close()
            self.on_lost(str(error))

    def _offer(self, body: bytes) -> None:
        if len(body) < OFFER_HEAD.size:
            raise RemoteProtocolError("OFFER without a length")
        (length,) = OFFER_HEAD.unpack_from(body)
        header = unpack(memoryview(body)[OFFER_HEAD.size :])
        reply = self._decide(header, length)
        self._offered_s = clock_s()
        if reply.get("accepted") is True:
            self._state, self._header = _State.RECEIVING, header
            self._payload = np.empty(length, np.uint8).data  # not bytearray: that would write every page twice
            self._acceptor.inflight_bytes += length
            self._stream.expect_payload(self._payload)
        else:
            self._state = _State.DISCARDING
            self._stream.expect_payload(None)
        self._stream.send(Frame.VERDICT, pack(reply))

    def _decide(self, header: Header, length: int) -> Header:
        options = self._acceptor.options
        if length > options.max_payload_bytes:
            return _refusal(f"{length} bytes are over the bound of {options.max_payload_bytes}")
        if length + self._acceptor.inflight_bytes > options.max_inflight_bytes:
            return {**_refusal("too many bytes are being received already"), "verdict": "BUSY"}
        try:
            return self._acceptor.service_for(header).on_offer(self.sender, header, length)
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
        received, header, payload = self._state is _State.RECEIVING, self._header, self._payload
        filled, crc = self._stream.sink_filled, self._stream.sink_crc
        self._settle()
        if not received:
            return
        receive_s = clock_s() - self._offered_s
        sent, sent_crc = END_BODY.unpack(body)
        service = self._acceptor.service_for(header)
        if filled != len(payload) or (sent, sent_crc) != (filled, crc):
            reason = f"{filled} of {len(payload)} bytes, {sent} sent, checksum {'equal' if sent_crc == crc else 'differs'}"
            self._acknowledge(FailureKind.CORRUPT, reason, receive_s)
            service.on_broken(self.sender, header, f"corrupt: {reason}")
            return
        try:
            service.on_delivery(self.sender, header, payload)
        except RemoteProtocolError as error:
            self._acknowledge(FailureKind.REFUSED, str(error), receive_s)
        else:
            self._acknowledge(None, "", receive_s)

    def _acknowledge(self, failure: FailureKind | None, reason: str, receive_s: float) -> None:
        body = {"failure": failure.value if failure else None, "reason": reason, "receive_s": receive_s}
        self._stream.send(Frame.ACK, pack(body))

    def _abort(self, reason: str) -> None:
        received, header = self._state is _State.RECEIVING, self._header
        self._settle()
        if received:
            self._acceptor.service_for(header).on_broken(self.sender, header, reason)

    def _settle(self) -> None:
        """Back to IDLE; the payload's memory no longer counts as being received."""
        if self._state is _State.RECEIVING:
            self._acceptor.inflight_bytes -= len(self._payload)
            self._stream.expect_payload(None)
        self._state, self._header, self._payload = _State.IDLE, {}, memoryview(b"")

    @property
    def _stream(self) -> FrameStream:
        assert self.frames is not None, "frames arrive only on a stream that was taken over"
        return self.frames


def _refusal(reason: str) -> Header:
    return {"accepted": False, "verdict": "REFUSED", "reason": reason}
