"""The data port: who connects shows a ticket, then its certificate, and only then is anything held for it.

Of those that have not shown both, so many may be there at once, and from one address; each has a few seconds. What they have to
show is read into 20 bytes. The limits of streams (`rpc/acceptor`) hold for whoever has come in as they do for p2pd's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from gwtf_p2p.live.direct.invitations import TICKET_BYTES, Guests
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)

PRELUDE = b"GWTF"
"""Before the ticket, which the invited peer was told: nothing that somebody chose comes first on a connection."""

HANDSHAKE_S = 5.0
MOST_UNKNOWN = 64
MOST_UNKNOWN_OF_ONE = 16
"""Of one address, that have shown nothing yet; peers behind one router share it."""

_BACKLOG = 64
_PORT_TRIES = 8
_AGAIN_S = 1.0

SILENCE_MS = 10_000
"""Bytes that nobody acknowledges for so long end a connection: half open, or the other machine is gone."""

Accept = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """`hosts`: IP addresses to listen on; `port` 0 for any. `may_come` is asked before a guest's handshake."""

    def __init__(self, hosts: Sequence[str], port: int, guests: Guests, may_come: Callable[[PeerId], bool]) -> None:
        self._hosts, self._asked_port, self._guests, self._may_come = tuple(hosts), port, guests, may_come
        self._sockets: list[socket.socket] = []
        self._unmet: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: dict[socket.socket, asyncio.TimerHandle] = {}
        self._unknown: Counter[str] = Counter()
        self._accept: Accept | None = None
        self.refused = 0

    @property
    def port(self) -> int:
        """0 while nothing listens."""
        return int(self._sockets[0].getsockname()[1]) if self._sockets else 0

    def start(self, accept: Accept) -> None:
        """Whoever has shown ticket and certificate is handed to `accept`. Raises OSError when the port cannot be had."""
        self._accept = accept
        self._sockets = _listen(self._hosts, self._asked_port)
        for listening in self._sockets:
            self._watch(listening)

    async def stop(self) -> None:
        """Listen no more. Streams that were accepted are their holders' to end. May be called twice."""
        loop = asyncio.get_running_loop()
        for again in self._again.values():
            again.cancel()
        for listening in self._sockets:
            loop.remove_reader(listening)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for unused in (*self._sockets, *self._unmet):  # a task that was cancelled before its first step has closed nothing
            unused.close()
        self._unmet.clear()
        self._sockets = []

    def _watch(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listening, self._take_all, listening)

    def _take_all(self, listening: socket.socket) -> None:
        """Whoever has connected. Taken at once and not in a task: what a task was given just when it is cancelled is lost."""
        loop = asyncio.get_running_loop()
        for _ in range(_BACKLOG):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # no descriptors left, or it ended before it was taken
                logger.info("a connection to the data port was not taken: %s", error)
                loop.remove_reader(listening)
                self._again[listening] = loop.call_later(_AGAIN_S, self._watch, listening)
                return
            host = str(address[0])
            if self._unknown.total() >= MOST_UNKNOWN or self._unknown[host] >= MOST_UNKNOWN_OF_ONE:
                self.refused += 1
                connection.close()
            else:
                self._unknown[host] += 1
                self._unmet.add(connection)
                self._spawn(self._meet(connection, host))

    async def _meet(self, connection: socket.socket, host: str) -> None:
        """Ticket and handshake; the connection is closed unless both are right."""
        met = None
        try:
            met = await self._authenticated(connection)
        except (TimeoutError, OSError, RemoteProtocolError):
            self.refused += 1
        finally:
            self._unmet.discard(connection)
            self._unknown[host] -= 1
            if not self._unknown[host]:
                del self._unknown[host]
            if met is None:
                connection.close()
        if met is not None:
            assert self._accept is not None, "connections come after the start"
            try:
                await self._accept(*met)
            except asyncio.CancelledError:
                met[2].transport.abort()
                raise

    async def _authenticated(self, connection: socket.socket) -> tuple[PeerId, asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError, TimeoutError, RemoteProtocolError."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        async with asyncio.timeout(HANDSHAKE_S):
            shown = await _read_exactly(loop, connection, len(PRELUDE) + TICKET_BYTES)
        guest = self._guests.guest(shown[len(PRELUDE) :]) if shown.startswith(PRELUDE) else None
        if guest is None or not self._may_come(guest.peer):
            raise RemoteProtocolError("no ticket of ours")
        prepare(connection)
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        context = self._guests.context(guest)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except BaseException:
            let_go(connection)
            raise
        if not showed(transport, guest.certificate):
            transport.abort()
            raise RemoteProtocolError("it has shown another certificate")
        return guest.peer, reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def prepare(connection: socket.socket) -> None:
    """Small frames go at once, and an end that nobody tells is noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_USER_TIMEOUT", SILENCE_MS), ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def let_go(connection: socket.socket) -> None:
    """Of a connection that was handed to a transport of the loop which nobody got: it ends with it, and closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.detach()


def showed(transport: asyncio.BaseTransport, certificate: bytes) -> bool:
    """Whether the other end of a TLS connection has the key of just this certificate."""
    shown: bytes | None = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return shown == certificate


async def _read_exactly(loop: asyncio.AbstractEventLoop, connection: socket.socket, count: int) -> bytes:
    """So many bytes, and not one more: TLS begins behind them. Raises OSError."""
    got = b""
    while len(got) < count:
        more = await loop.sock_recv(connection, count - len(got))
        if not more:
            raise ConnectionError("it ended before it said who it is")
        got += more
    return got


def _listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """One socket for each address, with one port for all. Raises OSError."""
    for left in reversed(range(1 if port else _PORT_TRIES)):
        sockets: list[socket.socket] = []
        try:
            for host in hosts:
                sockets.append(_bound(host, port or (sockets[0].getsockname()[1] if sockets else 0)))
            return sockets
        except OSError:
            for bound in sockets:
                bound.close()
            if not left:
                raise
    return []


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
