"""Hole punching between two peers behind NATs that keep ports, with no help from p2pd and one public peer to meet through.

p2pd punches by itself only after four public peers on four addresses have told it its own address. Here one peer *waits at its
door*: it connects from p2pd's own port to the other one's public address, which opens its NAT for what comes back from there.
The other one dials normally. Its SYN meets the waiting one and the two kernels make one connection of them (TCP simultaneous
open). To the dialler's p2pd this is an ordinary connection; at the waiting end this process holds the socket and hands the
bytes on to its own p2pd over loopback, so the two p2pds shake hands with each other and each sees a direct connection.

The waiting socket must stay open until the dial comes. A SYN that is sent and taken back opens the NAT as well, but then the
answer comes from p2pd's listener with another sequence number, and a Linux router drops what follows as invalid (measured).

Where it cannot work: both NATs pick a new port for each destination, or one does and the other admits only known ports. Where
it must not be tried: with a peer that anybody can dial; its p2pd would take the waiting SYN for a caller's, and two listeners
would face each other. Dial it instead. p2pd must not dial the same address meanwhile (libp2p's DHT in client mode sees to that
for peers behind NAT), and must share its port, as go-libp2p does by default on Linux and macOS.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

WAIT_S = 5.0
_CHUNK_BYTES = 1 << 18


class PunchFailed(Exception):
    """No connection came of it; the text says why."""


class Splice:
    """Two connected sockets, bytes of each handed on to the other, until one of them ends. Made by `wait_at_door`."""

    def __init__(self, outside: socket.socket, inside: socket.socket) -> None:
        self._sockets = outside, inside
        self.local_port = int(inside.getsockname()[1])
        """p2pd knows the connection as 127.0.0.1 with this port: how a punched path is told from a local one."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def ended(self) -> None:
        """Return when the connection is over."""
        await asyncio.wait({self._task})

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        one, other = self._sockets
        ways = [asyncio.ensure_future(_pump(one, other)), asyncio.ensure_future(_pump(other, one))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            one.close()
            other.close()


async def wait_at_door(own_port: int, host: str, port: int, limit_s: float = WAIT_S) -> Splice:
    """Open the NAT towards `host` and `port`, and hand what comes from there to the p2pd that listens on `own_port`.

    Raises PunchFailed.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        outside = undo.enter_context(_door(own_port))
        inside = undo.enter_context(socket.socket())
        inside.setblocking(False)
        try:
            async with asyncio.timeout(limit_s):
                await loop.sock_connect(outside, (host, port))
        except TimeoutError as error:
            raise PunchFailed(f"nothing came from {host} port {port} within {limit_s:.0f} s") from error
        except OSError as error:
            raise PunchFailed(f"{host} port {port}: {error.strerror or error}") from error
        try:
            await loop.sock_connect(inside, ("127.0.0.1", own_port))
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise PunchFailed(f"the own p2pd does not listen on port {own_port}: {error.strerror or error}") from error
        undo.pop_all()
    return Splice(outside, inside)


def _door(own_port: int) -> socket.socket:
    """A socket on p2pd's port. Raises PunchFailed when p2pd does not share it."""
    door = socket.socket()
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            door.setsockopt(socket.SOL_SOCKET, option, 1)
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        door.bind(("0.0.0.0", own_port))
        door.setblocking(False)
    except OSError as error:
        door.close()
        raise PunchFailed(f"port {own_port}: {error.strerror or error}") from error
    return door


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop, buffer = asyncio.get_running_loop(), bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    try:
        while count := await loop.sock_recv_into(source, view):
            await loop.sock_sendall(sink, view[:count])
    except OSError:
        return  # the other way ends with it
