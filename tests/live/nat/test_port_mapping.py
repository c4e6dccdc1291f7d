"""What a router's answer means, and that nonsense in its place is refused. Real routers: tests/lab/test_port_mapping.py."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gwtf_p2p.live.nat import nat_pmp, port_mapping
from gwtf_p2p.live.nat.nat_pmp import MappingRefused, NatPmpGateway, NoGateway, PcpGateway, find_pmp_gateway
from gwtf_p2p.live.nat.port_mapping import RENEW_S, PortMapper, is_public, renewal_s
from gwtf_p2p.live.nat.upnp import read_lease_s

ROUTER = "127.0.0.1"
LIMIT_S = 5.0
Answer = Callable[[bytes], list[bytes]]


class _Router(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: Answer = lambda request: []
        self.heard: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard.append(data)
        for answer in self.answer(data):
            self.transport.sendto(answer, addr)


@pytest.fixture
async def router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_Router]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(_Router, local_addr=(ROUTER, 0))
    monkeypatch.setattr(nat_pmp, "PORT", transport.get_extra_info("sockname")[1])
    yield protocol
    transport.close()


def pmp(operation: int, result: int, body: bytes) -> bytes:
    return struct.pack(">BBHI", 0, 0x80 | operation, result, 7) + body


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("8.8.8.8", True),
        ("192.0.0.130", True),
        ("100.63.0.1", True),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("172.31.0.1", False),
        ("10.1.2.3", False),
        ("169.254.0.1", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_private_and_providers_addresses_are_not_public(ip: str, public: bool) -> None:
    assert is_public(ip) is public


async def test_a_router_without_pcp_is_taken_for_nat_pmp(router: _Router) -> None:
    router.answer = lambda request: [pmp(0, 1, b"")]
    assert isinstance(await find_pmp_gateway(LIMIT_S, ROUTER), NatPmpGateway)


async def test_a_lost_datagram_is_repeated(router: _Router) -> None:
    router.answer = lambda request: [pmp(0, 1, b"")] if len(router.heard) > 1 else []
    await find_pmp_gateway(LIMIT_S, ROUTER)
    assert router.heard[0] == router.heard[1]


async def test_requests_of_others_are_no_answer(router: _Router) -> None:
    router.answer = lambda request: [request, b"", pmp(0, 1, b"")]
    assert isinstance(await find_pmp_gateway(LIMIT_S, ROUTER), NatPmpGateway)


async def test_a_silent_router_is_named(router: _Router) -> None:
    with pytest.raises(NoGateway, match=ROUTER):
        await find_pmp_gateway(0.1, ROUTER)


@pytest.mark.parametrize(
    "answer",
    [pmp(2, 2, bytes(8)), pmp(2, 0, b""), pmp(0, 0, bytes(8)), b"\x00\x82\x00\x00", b"\x00\x82\x00"],
    ids=["not authorised", "short", "of another question", "head alone", "less than a head"],
)
async def test_nat_pmp_nonsense_is_refused(router: _Router, answer: bytes) -> None:
    router.answer = lambda request: [pmp(0, 0, bytes([1, 2, 3, 4])) if request[1] == 0 else answer]
    with pytest.raises((MappingRefused, NoGateway)):
        await NatPmpGateway(ROUTER, 0.3).map(31330, 31330, 600)


@pytest.mark.parametrize(
    ("result", "length", "ip"),
    [(2, 60, bytes(10) + b"\xff\xff\x01\x02\x03\x04"), (0, 40, bytes(16)), (0, 60, bytes(15) + b"\x01")],
    ids=["not authorised", "short", "an IPv6 address"],
)
async def test_pcp_nonsense_is_refused(router: _Router, result: int, length: int, ip: bytes) -> None:
    whole = struct.pack(">BBBBII12x", 2, 0x81, 0, result, 600, 7) + struct.pack(">12sB3xHH16s", bytes(12), 6, 1, 1, ip)
    router.answer = lambda request: [whole[:length]]
    with pytest.raises(MappingRefused):
        await PcpGateway(ROUTER, LIMIT_S).map(31330, 31330, 600)


@pytest.mark.parametrize(
    ("granted_s", "after_s"),
    [(3600, RENEW_S), (1000, 500), (121, 60.5), (60, 30), (1, port_mapping.LEAST_RENEW_S), (0, RENEW_S)],
    ids=["as asked", "less", "two minutes", "a minute", "too little to keep up", "for ever"],
)
def test_a_mapping_is_renewed_at_half_of_what_was_granted(granted_s: int, after_s: float) -> None:
    assert renewal_s(granted_s) == after_s


async def test_a_router_that_grants_little_is_asked_again_before_that_is_over(
    router: _Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own renewal of ten minutes the peer would be unreachable from the second second on, and say nothing."""
    renewed = asyncio.Event()

    def answer(request: bytes) -> list[bytes]:
        if request[0] == 2:
            return [pmp(0, 1, b"")]  # no PCP
        if request[1] == 0:
            return [pmp(0, 0, bytes([8, 8, 8, 8]))]
        if len([asked for asked in router.heard if asked[:2] == request[:2]]) == 2:
            renewed.set()
        return [pmp(2, 0, struct.pack(">HHI", 31330, 31330, 1))]

    async def no_upnp(limit_s: float) -> NatPmpGateway:
        raise NoGateway("none here")

    router.answer = answer
    monkeypatch.setattr(nat_pmp, "default_router", lambda: ROUTER)
    monkeypatch.setattr(port_mapping, "find_upnp_gateway", no_upnp)
    monkeypatch.setattr(port_mapping, "LEAST_RENEW_S", 0.0)
    mapper = PortMapper()
    assert await mapper.map_port(31330) == "/ip4/8.8.8.8/tcp/31330"
    assert mapper.mapped is not None and mapper.mapped.granted.lifetime_s == 1
    async with asyncio.timeout(LIMIT_S):
        await renewed.wait()
    await mapper.close()


async def test_a_mapping_for_no_time_is_none(router: _Router) -> None:
    router.answer = lambda request: [pmp(request[1], 0, bytes([8, 8, 8, 8]) if request[1] == 0 else bytes(8))]
    with pytest.raises(MappingRefused, match="for no time"):
        await NatPmpGateway(ROUTER, LIMIT_S).map(31330, 31330, 600)


@pytest.mark.parametrize(
    ("told", "lease_s"), [(120, 120), (3598, 3600), (0, 3600), (9999, 3600), ("120", 3600), (None, 3600), (-1, 3600)]
)
def test_what_a_upnp_router_says_of_a_lease_is_read(told: object, lease_s: int) -> None:
    assert read_lease_s(told, 3600) == lease_s
