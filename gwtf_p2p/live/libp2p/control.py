"""What libp2p itself can tell a peer about its reachability, asked for over p2pd's control socket.

p2pd runs these protocols on its own account but keeps the answers to itself. Any stream can be opened through it, though, so
they are spoken here, and every libp2p peer understands them, a stock `hivemind-dht` too:

- identify (/ipfs/id/1.0.0): the address under which the other one sees this peer. p2pd itself believes an address only after
  four observers; two that agree are enough to know that a NAT keeps ports.
- AutoNAT (/libp2p/autonat/1.0.0): the other one dials this peer back, from another port and with another identity. It says yes
  in a round trip and no after 15 s, whatever the reason (so that nobody can scan ports with it). A NAT that lets in every port
  of an address that was sent to (address-restricted) gets a yes, though strangers cannot come in (measured in the lab).
- circuit relay v2 (/libp2p/circuit/relay/0.2.0/hop): a reservation, with the budget of a circuit in bytes and seconds. p2pd's
  AutoRelay makes reservations too, but waits for four candidates or 3 minutes, drops a circuit relay that restarts for an
  hour, and does not tell the budget (go-libp2p 0.32.1, p2p/host/autorelay).

Messages are protobuf, each behind its length; only the fields used here are read and written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hivemind.p2p import PeerID
from hivemind.utils.multiaddr import Multiaddr

from gwtf_p2p.live.libp2p.dialling import StreamRefused, maddr_text, open_stream
from gwtf_p2p.protocol.ids import PeerId

IDENTIFY = "/ipfs/id/1.0.0"
AUTONAT = "/libp2p/autonat/1.0.0"
RELAY_HOP = "/libp2p/circuit/relay/0.2.0/hop"

DIAL_BACK_S = 17.0
"""A dial-back that fails is answered after 15 s."""

_MAX_MESSAGE = 1 << 16
_VARINT, _BYTES = 0, 2
_RESERVE, _STATUS, _STATUS_OK = 0, 2, 100
_DIAL, _DIAL_RESPONSE = 0, 1
DIAL_REFUSED = "the dial was refused"
"""Asked too often, or for an address that the peer does not dial."""
_REASONS = {
    100: "the dial failed",
    101: DIAL_REFUSED,
    200: "reservation refused",
    201: "the circuit relay is full",
    202: "permission denied",
    203: "connection failed",
    204: "no reservation",
}


class StreamFailed(Exception):
    """The stream could not be opened, broke, or brought no answer in time; or the answer makes no sense."""


@dataclass(frozen=True, slots=True)
class Identified:
    """What another peer says of itself and of this one. `observed` is this peer's address as the other one sees it."""

    observed: str
    listens: tuple[str, ...]
    protocols: frozenset[str]

    @property
    def is_relay(self) -> bool:
        return RELAY_HOP in self.protocols

    @property
    def dials_back(self) -> bool:
        return AUTONAT in self.protocols


@dataclass(frozen=True, slots=True)
class DialBack:
    """`address` is the one under which this peer was reached; empty when it was not, and `reason` says why."""

    address: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot at a circuit relay until `expires_at` (wall clock of the circuit relay, seconds since the epoch).

    Each circuit to this peer ends after `circuit_bytes` each way or `circuit_s`; 0 is no limit.
    """

    relay: PeerId
    expires_at: float
    circuit_bytes: int
    circuit_s: int


class ReservationRefused(Exception):
    """The circuit relay answered, with a no."""


async def identify(control_path: str, peer: PeerId, limit_s: float) -> Identified:
    """Raises StreamFailed."""
    observed, listens, protocols = "", list[str](), set[str]()
    async with _stream(control_path, peer, IDENTIFY, limit_s) as (reader, _):
        while message := await _read(reader):
            for field, value in _fields(message):
                if not isinstance(value, bytes):
                    continue
                if field == 2:
                    listens.append(maddr_text(value))
                elif field == 3:
                    protocols.add(value.decode(errors="replace"))
                elif field == 4:
                    observed = maddr_text(value)
    return Identified(observed, tuple(filter(None, listens)), frozenset(protocols))


async def dial_back(
    control_path: str, me: PeerId, peer: PeerId, maddrs: Sequence[str], limit_s: float = DIAL_BACK_S
) -> DialBack:
    """Ask `peer` to dial this one, at the address where it sees it, and at the ports of `maddrs` (no peer ids in them).

    Raises StreamFailed; with a limit under 15 s that is the usual no.
    """
    addresses = b"".join(_bytes(2, Multiaddr(maddr).to_bytes()) for maddr in maddrs)
    dial = _bytes(1, _bytes(1, PeerID.from_base58(me).to_bytes()) + addresses)
    async with _stream(control_path, peer, AUTONAT, limit_s) as (reader, writer):
        await _write(writer, _varint(1, _DIAL) + _bytes(2, dial))
        answer = dict(_fields(await _read(reader)))
    response = answer.get(3)
    if answer.get(1) != _DIAL_RESPONSE or not isinstance(response, bytes):
        raise StreamFailed(f"{peer[-6:]} does not answer as AutoNAT does")
    fields = dict(_fields(response))
    status, address = fields.get(1, 0), fields.get(3)
    if status == 0 and isinstance(address, bytes):
        return DialBack(maddr_text(address))
    return DialBack("", _REASONS.get(int(status), f"status {status}") if isinstance(status, int) else "no status")


async def reserve(control_path: str, relay: PeerId, limit_s: float) -> Reservation:
    """Make or renew this peer's reservation at a circuit relay that it is connected to. Raises StreamFailed,
    ReservationRefused."""
    async with _stream(control_path, relay, RELAY_HOP, limit_s) as (reader, writer):
        await _write(writer, _varint(1, _RESERVE))
        answer = dict(_fields(await _read(reader)))
    status, slot, limit = answer.get(5), answer.get(3), answer.get(4, b"")
    if answer.get(1) != _STATUS or not isinstance(limit, bytes):
        raise StreamFailed(f"{relay[-6:]} does not answer as a circuit relay does")
    if status != _STATUS_OK or not isinstance(slot, bytes):
        raise ReservationRefused(_REASONS.get(status, f"status {status}") if isinstance(status, int) else "no status")
    expires, limits = dict(_fields(slot)).get(1, 0), dict(_fields(limit))
    return Reservation(relay, float(_whole(expires)), _whole(limits.get(2, 0)), _whole(limits.get(1, 0)))


# ---- streams


@asynccontextmanager
async def _stream(
    control_path: str, peer: PeerId, protocol: str, limit_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A stream to a peer, closed at the end of the block. What goes wrong in the block is raised as StreamFailed."""
    writer = None
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await open_stream(control_path, peer, protocol)
            yield reader, writer
    except TimeoutError as error:
        raise StreamFailed(f"{protocol} with {peer[-6:]}: no answer within {limit_s:.0f} s") from error
    except (StreamRefused, OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise StreamFailed(f"{protocol} with {peer[-6:]}: {error or type(error).__name__}") from error
    finally:
        if writer is not None:
            writer.transport.abort()


async def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(_number(len(message)) + message)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The next message; empty at the end of the stream. Raises ValueError, IncompleteReadError."""
    length = shift = 0
    while True:
        byte = await reader.read(1)
        if not byte:
            return b""
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    if length > _MAX_MESSAGE:
        raise ValueError(f"a message of {length} bytes")
    return await reader.readexactly(length)


# ---- protobuf


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message. Raises ValueError."""
    at = 0
    while at < len(message):
        key, at = _take_number(message, at)
        value: int | bytes
        if key & 7 == _VARINT:
            value, at = _take_number(message, at)
        elif key & 7 == _BYTES:
            length, at = _take_number(message, at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("a field is longer than its message")
        else:
            raise ValueError(f"a field of kind {key & 7}")
        yield key >> 3, value


def _take_number(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number without end")
        number |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 0x80:
            return number, at


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3 | _VARINT) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | _BYTES) + _number(len(value)) + value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise StreamFailed("bytes where a number is due")
    return value
