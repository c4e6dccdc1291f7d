"""Have the own p2pd connect to a peer, at given addresses, see which connections there are, and open streams.

Spoken by hand over p2pd's control socket: hivemind's `Multiaddr.to_bytes` writes ids of the form 12D3... in a way that p2pd
refuses. p2pd answers at once when there is any connection to the peer already, direct or through a relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.multiaddr.exceptions import Error as MultiaddrError

from gwtf_p2p.protocol.ids import PeerId

CIRCUIT = "/p2p-circuit"


class StreamRefused(Exception):
    """p2pd could not open the stream: the peer is not to be reached, or does not speak the protocol."""


_ANSWER_S = 5.0


async def connect(control_path: str, peer: PeerId, maddrs: Sequence[str], limit_s: float) -> str:
    """Connect at these multiaddrs (with or without the peer's own id at their end), or, without any, wherever the swarm knows
    the peer; returns why not, or nothing.
    """
    known = [wire_bytes(maddr.removesuffix(f"/p2p/{peer}")) for maddr in maddrs]
    request = p2pd_pb2.ConnectRequest(peer=PeerID.from_base58(peer).to_bytes(), addrs=known)
    try:
        async with asyncio.timeout(limit_s):
            response = await _ask(control_path, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request))
    except TimeoutError:
        return f"no answer within {limit_s:.0f} s"
    except (OSError, asyncio.IncompleteReadError):
        return "the own p2pd does not answer"
    return " ".join(response.error.msg.split()) if response.type == p2pd_pb2.Response.ERROR else ""


async def disconnect(control_path: str, peer: PeerId) -> None:
    """Close all connections to a peer; nothing happens when there is none."""
    request = p2pd_pb2.DisconnectRequest(peer=PeerID.from_base58(peer).to_bytes())
    try:
        async with asyncio.timeout(_ANSWER_S):
            await _ask(control_path, p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=request))
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return  # a p2pd that does not answer has no connections to speak of; its end is noticed elsewhere


async def connections(control_path: str) -> dict[PeerId, list[str]]:
    """Remote addresses of all connections of the own p2pd, by peer; empty when it does not answer."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            response = await _ask(control_path, p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return {}
    found: dict[PeerId, list[str]] = {}
    for info in response.peers:
        addresses = found.setdefault(PeerId(str(PeerID(info.id))), [])
        addresses += filter(None, map(maddr_text, info.addrs))
    return found


async def open_stream(control_path: str, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream to a peer; abort the writer's transport to end it. Safe to cancel: nothing stays open.

    Raises StreamRefused; OSError or IncompleteReadError when the own p2pd is gone. hivemind's own `stream_open` leaves the unix
    connection open in both processes whenever the peer cannot be reached.
    """
    request = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol])
    response = p2pd_pb2.Response()
    reader, writer = await asyncio.open_unix_connection(control_path)
    with ExitStack() as on_failure:
        on_failure.callback(writer.transport.abort)
        await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request))
        await read_pbmsg_safe(reader, response)
        if response.type == p2pd_pb2.Response.ERROR:
            raise StreamRefused(response.error.msg)
        on_failure.pop_all()
    return reader, writer


async def remove_handler(control_path: str, listen_path: str, protocol: str) -> None:
    """Whoever opens a stream of this protocol is not sent to the listener at this path any more. A handler that is not there is
    no error; OSError or IncompleteReadError when the own p2pd is gone."""
    address = Multiaddr(f"/unix{listen_path}").to_bytes()
    request = p2pd_pb2.RemoveStreamHandlerRequest(addr=address, proto=[protocol])
    await _ask(control_path, p2pd_pb2.Request(type=p2pd_pb2.Request.REMOVE_STREAM_HANDLER, removeStreamHandler=request))


def is_circuit(maddr: str) -> bool:
    return CIRCUIT in maddr


def wire_bytes(maddr: str) -> bytes:
    """The multiaddr in bytes, each /p2p/<id> as a plain multihash."""
    out = b""
    for index, part in enumerate(maddr.split("/p2p/")):
        if index == 0:
            out += Multiaddr(part).to_bytes()
            continue
        text, _, rest = part.partition("/")
        multihash = PeerID.from_base58(text).to_bytes()
        out += b"\xa5\x03" + bytes([len(multihash)]) + multihash
        if rest:
            out += Multiaddr(f"/{rest}").to_bytes()
    return out


def maddr_text(value: bytes) -> str:
    """Empty when these bytes are no multiaddr that hivemind's parser knows."""
    try:
        return str(Multiaddr(value))
    except (MultiaddrError, ValueError):
        return ""


async def _ask(control_path: str, request: p2pd_pb2.Request) -> p2pd_pb2.Response:
    response = p2pd_pb2.Response()
    reader, writer = await asyncio.open_unix_connection(control_path)
    try:
        await write_pbmsg(writer, request)
        await read_pbmsg_safe(reader, response)
    finally:
        writer.transport.abort()
    return response
