"""Ports mapped by the router on request: NAT-PMP (RFC 6886) and its successor PCP (RFC 6887), over UDP port 5351 of the router.

Both share the port and the first byte, the version: a PCP server answers an ANNOUNCE of version 2 in kind, a NAT-PMP server
answers that it does not know version 2, and a router with neither answers with ICMP or not at all. Written here because no
kept library does it: it is four messages.
"""

from __future__ import annotations

import asyncio
import platform
import secrets
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Protocol

PORT = 5351
_FIRST_WAIT_S = 0.25
"""The first wait for an answer; doubled with every repetition (RFC 6886, section 3.1)."""

_PCP, _NAT_PMP = 2, 0
_ANNOUNCE, _MAP = 0, 1
_ADDRESS, _MAP_TCP = 0, 2
_TCP = 6
_RESPONSE = 0x80
_PCP_HEAD = struct.Struct(">BBHI16s")
_PCP_RESPONSE = struct.Struct(">BBBBII12x")
_PCP_MAP = struct.Struct(">12sB3xHH16s")
_PCP_RESULTS = {
    2: "not authorised",
    4: "mapping is not supported",
    7: "the network has failed",
    8: "no resources",
    9: "unsupported protocol",
    10: "too many mappings",
    11: "cannot provide the external address",
    12: "the address does not match",
    13: "too many peers",
}
_PMP_RESULTS = {2: "not authorised", 3: "the network has failed", 4: "no resources", 5: "unsupported operation"}


class NoGateway(Exception):
    """No router answers; the text says who was asked and how."""


class MappingRefused(Exception):
    """The router answered, with a no."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What the router gave: where others may call, and for how many seconds; 0 is for ever, as UPnP has it."""

    external_ip: str
    external_port: int
    lifetime_s: int


class Gateway(Protocol):
    """A router that maps TCP ports of this machine. `kind`: UPnP, PCP or NAT-PMP."""

    kind: str
    address: str

    async def map(self, port: int, external_port: int, lifetime_s: int) -> Granted:
        """Map or renew; the router may give another external port. Raises MappingRefused, NoGateway."""

    async def unmap(self, port: int, external_port: int) -> None:
        """Raises MappingRefused, NoGateway."""


class PcpGateway:
    """A router that speaks PCP. One nonce for all mappings of this process, as the protocol wants it for renewals."""

    kind = "PCP"

    def __init__(self, address: str, limit_s: float) -> None:
        self.address = address
        self._limit_s = limit_s
        self._nonce = secrets.token_bytes(12)

    async def map(self, port: int, external_port: int, lifetime_s: int) -> Granted:
        answer = await self._request(port, external_port, lifetime_s)
        _, _, _, result, lifetime, _ = _PCP_RESPONSE.unpack_from(answer)
        if result:
            raise MappingRefused(f"PCP: {_PCP_RESULTS.get(result, f'result {result}')}")
        *_, given_port, given_ip = _PCP_MAP.unpack_from(answer, _PCP_RESPONSE.size)
        mapped = IPv6Address(given_ip).ipv4_mapped
        if mapped is None:
            raise MappingRefused("PCP: the external address is no IPv4 address")
        return Granted(str(mapped), given_port, _positive(lifetime, self.kind))

    async def unmap(self, port: int, external_port: int) -> None:
        await self._request(port, 0, 0)

    async def _request(self, port: int, external_port: int, lifetime_s: int) -> bytes:
        body = _PCP_MAP.pack(self._nonce, _TCP, port, external_port, _mapped("0.0.0.0"))
        request = _pcp_head(_MAP, lifetime_s, self.address) + body
        answer = await _exchange(self.address, request, self._limit_s)
        if len(answer) < _PCP_RESPONSE.size + _PCP_MAP.size or answer[1] != _RESPONSE | _MAP:
            raise MappingRefused("PCP: an answer that is none")
        return answer


class NatPmpGateway:
    """A router that speaks NAT-PMP."""

    kind = "NAT-PMP"

    def __init__(self, address: str, limit_s: float) -> None:
        self.address = address
        self._limit_s = limit_s

    async def map(self, port: int, external_port: int, lifetime_s: int) -> Granted:
        told = await self._request(struct.pack(">BB", _NAT_PMP, _ADDRESS), 12)
        given = await self._request(self._mapping(port, external_port, lifetime_s), 16)
        _, given_port, lifetime = struct.unpack_from(">HHI", given, 8)
        return Granted(str(IPv4Address(told[8:12])), given_port, _positive(lifetime, self.kind))

    async def unmap(self, port: int, external_port: int) -> None:
        await self._request(self._mapping(port, 0, 0), 16)

    def _mapping(self, port: int, external_port: int, lifetime_s: int) -> bytes:
        return struct.pack(">BBHHHI", _NAT_PMP, _MAP_TCP, 0, port, external_port, lifetime_s)

    async def _request(self, request: bytes, answer_bytes: int) -> bytes:
        answer = await _exchange(self.address, request, self._limit_s)
        result = struct.unpack_from(">H", answer, 2)[0] if len(answer) >= 4 else -1
        if result:
            raise MappingRefused(f"NAT-PMP: {_PMP_RESULTS.get(result, f'result {result}')}")
        if len(answer) < answer_bytes or answer[1] != _RESPONSE | request[1]:
            raise MappingRefused("NAT-PMP: an answer that is none")
        return answer


def _positive(lifetime_s: int, kind: str) -> int:
    """Raises MappingRefused: in these two protocols a lifetime of 0 is a mapping that has been removed."""
    if lifetime_s == 0:
        raise MappingRefused(f"{kind}: granted for no time at all")
    return lifetime_s


async def find_pmp_gateway(limit_s: float, router: str = "") -> Gateway:
    """Ask the default router (or `router`) which of the two it speaks. Raises NoGateway."""
    address = router or default_router()
    if not address:
        raise NoGateway("this machine has no default router")
    answer = await _exchange(address, _pcp_head(_ANNOUNCE, 0, address), limit_s)
    return PcpGateway(address, limit_s) if answer[0] == _PCP else NatPmpGateway(address, limit_s)


def default_router() -> str:
    """IPv4 address of the default router, empty when there is none. Where the system's table cannot be read (it is, on Linux),
    the first address of this machine's own /24, which is where home routers are.
    """
    if platform.system() == "Linux":
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            _, destination, gateway, flags, *_ = line.split()
            if destination == "00000000" and int(flags, 16) & 2:
                return socket.inet_ntoa(struct.pack("<I", int(gateway, 16)))
        return ""
    own = own_address("192.0.2.1")
    return f"{own.rpartition('.')[0]}.1" if own else ""


def own_address(towards: str) -> str:
    """This machine's IPv4 address on the way to another one; empty when there is no way. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect((towards, 9))
        except OSError:
            return ""
        return str(trial.getsockname()[0])


def _pcp_head(operation: int, lifetime_s: int, router: str) -> bytes:
    return _PCP_HEAD.pack(_PCP, operation, 0, lifetime_s, _mapped(own_address(router) or "0.0.0.0"))


def _mapped(ip: str) -> bytes:
    """An IPv4 address as PCP writes it."""
    return bytes(10) + b"\xff\xff" + IPv4Address(ip).packed


class _Question(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if len(data) >= 4 and data[1] & _RESPONSE and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _exchange(router: str, request: bytes, limit_s: float) -> bytes:
    """One request and its answer, repeated until `limit_s`. Raises NoGateway."""
    loop, wait_s = asyncio.get_running_loop(), _FIRST_WAIT_S
    try:
        transport, question = await loop.create_datagram_endpoint(_Question, remote_addr=(router, PORT))
    except OSError as error:
        raise NoGateway(f"NAT-PMP and PCP: {router}: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(limit_s):
            while True:
                transport.sendto(request)
                done, _ = await asyncio.wait({question.answer}, timeout=wait_s)
                if done:
                    return question.answer.result()
                wait_s *= 2
    except TimeoutError as error:
        raise NoGateway(f"NAT-PMP and PCP: no answer from {router}") from error
    except OSError as error:
        raise NoGateway(f"NAT-PMP and PCP: {router}: {error.strerror or error}") from error
    finally:
        transport.close()
        question.answer.cancel()
