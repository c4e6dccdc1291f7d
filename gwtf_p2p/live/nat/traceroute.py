"""The addresses of the first routers on the way to somebody, as `traceroute` finds them, without being root.

A UDP datagram whose life ends after k routers makes the k-th answer with ICMP; Linux hands the answer to the socket that sent
the datagram (IP_RECVERR, ip(7)). Other systems keep it to themselves: there nothing is found out.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

MOST_HOPS = 3
ANSWER_S = 1.0
_PORT = 33434
"""Where traceroute's probes go; nobody listens there."""

_IP_RECVERR = 11
_MSG_ERRQUEUE = 0x2000
_FROM_ICMP = 2
_SOCK_EXTENDED_ERR = struct.Struct("=IBBBBII")


async def first_hops(host: str, limit_s: float = ANSWER_S) -> tuple[str, ...]:
    """IPv4 addresses of the first `MOST_HOPS` routers towards `host`, empty strings for the silent ones.

    Nothing at all when `host` is no IPv4 address, or the system does not tell.
    """
    if not sys.platform.startswith("linux") or host.count(".") != 3:
        return ()
    found = await asyncio.gather(*(_hop(host, ttl, limit_s) for ttl in range(1, MOST_HOPS + 1)))
    before = found.index(host) if host in found else len(found)
    return tuple(found[:before])


async def _hop(host: str, ttl: int, limit_s: float) -> str:
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        probe.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        try:
            probe.connect((host, _PORT + ttl))
            probe.send(b"gwtf")
        except OSError:
            return ""
        loop.add_reader(probe, answered.set)
        try:
            async with asyncio.timeout(limit_s):
                await answered.wait()
            return _offender(probe)
        except (TimeoutError, OSError):
            return ""
        finally:
            loop.remove_reader(probe)


def _offender(probe: socket.socket) -> str:
    """Who sent the ICMP error that the kernel noted. Raises OSError when there is none."""
    _, notes, _, _ = probe.recvmsg(64, 512, _MSG_ERRQUEUE)
    for level, kind, data in notes:
        if level != socket.IPPROTO_IP or kind != _IP_RECVERR or len(data) < _SOCK_EXTENDED_ERR.size + 8:
            continue
        if _SOCK_EXTENDED_ERR.unpack_from(data)[1] == _FROM_ICMP:
            return socket.inet_ntoa(data[_SOCK_EXTENDED_ERR.size + 4 : _SOCK_EXTENDED_ERR.size + 8])
    return ""
