"""Whether another peer's data port can be reached, as tried in the background: nothing that is to be sent waits for it.

    shut -> asking -> open -> shut

A door is opened by asking the peer where it listens (`Ask`) and connecting there once. While it is open streams are opened
through it; the first that fails shuts it, and it is tried again after a while that doubles. A peer that has started again
listens elsewhere: the next asking finds it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gwtf_p2p.live.direct.certificate import Certificate, context_for, peer_of
from gwtf_p2p.live.direct.invitations import TICKET_BYTES
from gwtf_p2p.live.direct.listener import HANDSHAKE_S, PRELUDE, let_go, prepare, showed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
FIRST_RETRY_S = 5.0
LAST_RETRY_S = 600.0
STEADY_S = 60.0
"""A door that was open for so long starts anew with its waits."""

_LEAST_PORT, _MOST_PORT = 1024, 65535

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Header = dict[str, Any]
"""As `rpc/api` has it."""

Ask = Callable[[PeerId, Header], Awaitable[Header]]
"""A question over p2pd. Raises RemoteProtocolError."""
Hosts = Callable[[PeerId], Awaitable[Sequence[str]]]
"""IP addresses of a peer to which p2pd has a direct connection."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where a peer listens, and what it wants to be shown."""

    host: str
    port: int
    ticket: bytes
    certificate: bytes
    context: ssl.SSLContext


@dataclass(slots=True)
class Door:
    """One peer's. `invitation` is None while it is shut."""

    invitation: Invitation | None = None
    trying: asyncio.Task[None] | None = None
    next_try_s: float = 0.0
    retry_s: float = 0.0
    opened_s: float = 0.0


class Doors:
    """All doors that this peer has tried."""

    def __init__(self, own: Certificate, ask: Ask, hosts: Hosts) -> None:
        self._own, self._ask, self._hosts = own, ask, hosts
        self._doors: dict[PeerId, Door] = {}

    def is_open(self, peer: PeerId) -> bool:
        """False also sees to it that it is tried, if it is time for that."""
        door = self._doors.setdefault(peer, Door())
        if door.invitation is not None:
            return True
        loop = asyncio.get_running_loop()
        if door.trying is None and loop.time() >= door.next_try_s:
            door.trying = loop.create_task(self._try(peer, door))
        return False

    async def connect(self, peer: PeerId) -> Streams | None:
        """A new TLS connection through an open door; None, and the door is shut, when there is none to be had."""
        door = self._doors.get(peer)
        invitation = door.invitation if door is not None else None
        if door is None or invitation is None:
            return None
        try:
            return await _connect(invitation)
        except (TimeoutError, OSError, RemoteProtocolError) as error:
            if door.invitation is invitation:
                self.shut(peer, f"{str(error) or type(error).__name__}")
            return None

    def shut(self, peer: PeerId, why: str) -> None:
        """What came through it has failed: p2pd carries everything until it is open again."""
        door = self._doors.get(peer)
        if door is not None and door.invitation is not None:
            logger.info("no direct stream to %s: %s", peer[-6:], why)
            door.invitation = None
            self._later(door)

    async def close(self) -> None:
        """Try nothing any more."""
        trying = [door.trying for door in self._doors.values() if door.trying is not None]
        for task in trying:
            task.cancel()
        await asyncio.gather(*trying, return_exceptions=True)

    async def _try(self, peer: PeerId, door: Door) -> None:
        try:
            door.invitation = await self._invited(peer)
            _, writer = await _connect(door.invitation)
            writer.transport.abort()
        except (TimeoutError, OSError, RemoteProtocolError) as error:
            logger.debug("the data port of %s is not to be reached: %s", peer[-6:], str(error) or type(error).__name__)
            door.invitation = None
            self._later(door)
        else:
            door.opened_s = asyncio.get_running_loop().time()
            logger.debug("direct streams to %s", peer[-6:])
        finally:
            door.trying = None

    def _later(self, door: Door) -> None:
        now = asyncio.get_running_loop().time()
        if door.opened_s and now - door.opened_s > STEADY_S:
            door.retry_s = 0.0
        door.retry_s, door.opened_s = min(LAST_RETRY_S, max(FIRST_RETRY_S, 2 * door.retry_s)), 0.0
        door.next_try_s = now + door.retry_s

    async def _invited(self, peer: PeerId) -> Invitation:
        """Raises RemoteProtocolError; OSError where p2pd has no direct connection."""
        hosts = await self._hosts(peer)
        if not hosts:
            raise ConnectionError("p2pd has no direct connection to it")
        reply = await self._ask(peer, {"kind": KIND, "certificate": self._own.der})
        port, ticket, certificate = _checked(reply)
        if (whose := peer_of(certificate)) != peer:
            raise RemoteProtocolError(f"certificate: it is of {whose}")
        return Invitation(hosts[0], port, ticket, certificate, context_for(self._own, certificate, is_server=False))


KIND = "direct"
"""Of the question where a peer listens."""


def _checked(reply: Header) -> tuple[int, bytes, bytes]:
    """Port, ticket and certificate of an answer. Raises RemoteProtocolError."""
    port, ticket, certificate = reply.get("port"), reply.get("ticket"), reply.get("certificate")
    if not isinstance(port, int) or not _LEAST_PORT <= port <= _MOST_PORT:
        raise RemoteProtocolError(f"port: expected {_LEAST_PORT} to {_MOST_PORT}, got {port!r:.40}")
    if not isinstance(ticket, bytes) or len(ticket) != TICKET_BYTES:
        raise RemoteProtocolError(f"ticket: expected {TICKET_BYTES} bytes")
    if not isinstance(certificate, bytes):
        raise RemoteProtocolError("certificate: expected bytes")
    return port, ticket, certificate


async def _connect(to: Invitation) -> Streams:
    """Raises OSError, TimeoutError, RemoteProtocolError."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ipaddress.ip_address(to.host).version == 6 else socket.AF_INET
    connection, is_handed = socket.socket(family, socket.SOCK_STREAM), False
    try:
        connection.setblocking(False)
        prepare(connection)
        async with asyncio.timeout(CONNECT_S):
            await loop.sock_connect(connection, (to.host, to.port))
            await loop.sock_sendall(connection, PRELUDE + to.ticket)
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            options: dict[str, Any] = {"ssl": to.context, "server_hostname": "", "ssl_handshake_timeout": HANDSHAKE_S}
            is_handed = True
            transport, _ = await loop.create_connection(lambda: protocol, sock=connection, **options)
    except BaseException:
        let_go(connection) if is_handed else connection.close()
        raise
    if not showed(transport, to.certificate):
        transport.abort()
        raise RemoteProtocolError("it has shown another certificate")
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
