"""What users of `rpc.Rpc` see of it: handlers, results, failures, limits.

The sender of anything is the id that libp2p authenticated (the hash of the peer's public key). An id inside a header is
never used to tell who is speaking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgpack

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.stream_quotas import STREAM_LIMITS, Share, StreamLimits

Header = dict[str, Any]
"""A msgpack map with string keys, at most 1 MiB packed. `kind` chooses the service that gets it."""


Payload = memoryview | bytes | bytearray


class FailureKind(Enum):
    """Why an exchange with a peer did not come to its end."""

    UNREACHABLE = "unreachable"
    """No stream to the peer could be opened: nothing was said to it."""
    TIMEOUT = "timeout"
    BROKEN = "broken"
    """The stream broke. The peer may or may not have got what was sent."""
    CORRUPT = "corrupt"
    """The receiver got bytes, but not these."""
    REFUSED = "refused"
    """The peer says that the message breaks the protocol."""
    TOO_LARGE = "too large"
    """The message is over the bound of what a peer takes: it was not sent."""


class RpcFailed(RemoteProtocolError):
    """An exchange with one peer failed; expected in a swarm, and an event for the protocol."""

    def __init__(self, peer: PeerId, kind: FailureKind, reason: str) -> None:
        self.peer, self.kind, self.reason = peer, kind, reason
        super().__init__(f"{kind.value}: {peer[-6:]}: {reason}")


class PushFailed(RpcFailed):
    """A push was not acknowledged."""


class CallFailed(RpcFailed):
    """A call was not answered."""


@dataclass(frozen=True, slots=True)
class PushResult:
    """What one push did, for the protocol and for link measurements.

    `seconds` runs from the first byte written, on a stream that is open, to the acknowledgement (refused: to the reply).
    `round_trip_s` runs to the reply to the header, which travels ahead of the payload. `receive_s` is the receiver's own time
    between the header and the last byte. `sent_bytes` counts payload bytes, less than the whole when the receiver refused.
    `waited`: the payload was sent when the verdict had come, one round trip after the header.
    """

    reply: Header
    accepted: bool
    sent_bytes: int
    seconds: float
    round_trip_s: float
    receive_s: float
    waited: bool = False

    @property
    def transfer_s(self) -> float:
        """Seconds that the payload itself kept the link busy; the divisor of a bandwidth estimate.

        Of one that waited, no less than a sixteenth of a round trip: by so much one differs from the next."""
        turn_s = self.round_trip_s if self.waited else 0.0
        return max(self.seconds - self.round_trip_s - turn_s, self.receive_s - turn_s, turn_s / 16, 1e-6)


class RpcService(Protocol):
    """Gets the pushes and calls of one `kind`. All methods run in the event loop and return at once.

    A method may raise RemoteProtocolError: the sender is then told REFUSED with its text. Anything else is our own bug.
    """

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        """Decide on a transfer before its payload arrives. The payload is taken if the reply's `accepted` is True."""

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """An accepted payload is complete and checked. The buffer belongs to the handler from here on."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """An accepted payload will not come any more."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        """A call; returns the reply."""


class RpcHandlers(RpcService, Protocol):
    """The main service of a peer; it also hears of peers that it watches."""

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        """A watched peer (its process, its p2pd or the path to it) is gone. Said once; watch again to hear of it again."""


class DataPlane(Protocol):
    """What a peer needs of its data plane: the real `rpc.Rpc`, or the one over emulated links (`emulation.EmulatedRpc`)."""

    @property
    def peer_id(self) -> PeerId:
        """This peer."""

    async def start(self, handlers: RpcHandlers) -> None:
        """Accept streams from now on. Everything whose kind has no service of its own goes to `handlers`."""

    def add_service(self, kind: str, service: RpcService) -> None:
        """Pushes and calls whose header has this `kind` go to `service`."""

    async def stop(self) -> None:
        """End every stream at once, and accept none. May be called twice."""

    async def push(self, to: PeerId, header: Header, payload: Payload, deadline_s: float, *, eager: bool = True) -> PushResult:
        """Send header and payload; returns when they are acknowledged, or refused. Raises PushFailed.

        The payload must not change meanwhile. `eager=False` waits for the verdict before it sends the payload.
        """

    async def call(self, to: PeerId, header: Header, deadline_s: float, *, idempotent: bool = False) -> Header:
        """Send a small message; returns its reply. `idempotent` allows a second try. Raises CallFailed."""

    def watch(self, peer: PeerId) -> None:
        """Hear of it when the peer is gone."""

    def unwatch(self, peer: PeerId) -> None:
        """Hear of it no more."""

    def bar(self, peer: PeerId, seconds: float) -> None:
        """End its streams, and accept none of it for so long; 0 ends an earlier bar."""


PAYLOAD_BYTES = Share(member=1 << 29, stranger=1 << 28, strangers=1 << 28, everybody=1 << 30)


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """Limits and waits of the data plane.

    `first_try_s`: a first stream between two NATed peers sometimes stalls for exactly 10 s (measured); after this time it is
    given up and tried once more. `payload_bytes` bounds the memory of payloads that are being received, `limits` what else of
    this peer one sender may take. `park_s`: how long a half received payload waits for its sender to come back on another path,
    `direct_park_s`: on another stream of the same one.
    `half_frame_s`: a stream on which half a frame has come, and then nothing for so long, is ended; so is one whose frame has
    not come whole in `whole_frame_s`. `idle_accepted_s`: so is one on which nothing is said for so long, unless it is there to
    watch; its opener ends it much sooner (`idle_stream_s`).
    """

    max_payload_bytes: int = 256 << 20
    payload_bytes: Share = PAYLOAD_BYTES
    limits: StreamLimits = STREAM_LIMITS
    max_streams_per_peer: int = 8
    idle_stream_s: float = 60.0
    first_try_s: float = 4.0
    park_s: float = 20.0
    direct_park_s: float = 2.0
    half_frame_s: float = 30.0
    whole_frame_s: float = 90.0
    idle_accepted_s: float = 180.0


DEFAULT_OPTIONS = RpcOptions()


def pack(header: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(header)
    return packed


def unpack(body: bytes | memoryview) -> Header:
    """Raises RemoteProtocolError when the bytes are not a msgpack map."""
    try:
        header = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"header: not msgpack ({error})") from error
    if not isinstance(header, dict):
        raise RemoteProtocolError(f"header: expected a map, got {type(header).__name__}")
    return header
