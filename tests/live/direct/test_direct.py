"""Payloads over direct streams: both ends are who they say, and what fails there is carried by p2pd without a loss."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import weakref
from contextlib import suppress

import pytest

from gwtf_p2p.live.direct import doors
from gwtf_p2p.live.direct.direct import DirectOptions
from gwtf_p2p.live.direct.listener import MOST_UNKNOWN_OF_ONE, PRELUDE
from gwtf_p2p.live.rpc.api import CallFailed, FailureKind, PushFailed
from gwtf_p2p.live.rpc.greeting import Purpose
from gwtf_p2p.live.rpc.push import LEAST_DIRECT_BYTES
from tests.live.conftest import DEADLINE_S, StartPeer
from tests.live.direct.conftest import DirectPeer, StartDirect
from tests.live.direct.switch import Switch

PAYLOAD = os.urandom(24 << 20)
HEADER = {"kind": "Forward", "number": 1}
SIZES = range(LEAST_DIRECT_BYTES, LEAST_DIRECT_BYTES + 8)


async def is_ended(connection: socket.socket) -> bool:
    """Wait until the other end has closed it."""
    try:
        return await asyncio.get_running_loop().sock_recv(connection, 1) == b""
    except ConnectionError:
        return True


async def delivered(to: DirectPeer) -> bytes:
    what, _, header, payload = await to.handlers.next()
    assert (what, header) == ("delivery", HEADER)
    return bytes(payload)


async def test_payloads_go_directly_once_the_port_is_known(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    before = a.rpc.meter.direct_bytes
    result = await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
    assert result.accepted
    assert await delivered(b) == PAYLOAD
    assert a.rpc.meter.direct_bytes - before == len(PAYLOAD)


async def test_both_directions_and_many_at_once(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    await b.opened(a)
    pushes = [one.rpc.push(other.id, HEADER, PAYLOAD[:size], DEADLINE_S) for one, other in ((a, b), (b, a)) for size in SIZES]
    assert all(result.accepted for result in await asyncio.gather(*pushes))
    for peer in (a, b):
        assert {len(await delivered(peer)) for _ in SIZES} == set(SIZES)
        assert peer.rpc.meter.direct_bytes == sum(SIZES)


async def test_a_stream_that_has_ended_is_not_left_to_the_garbage_collector(start_direct: StartDirect) -> None:
    """Each would keep the buffers of a TLS connection until a collection of everything, which comes every ten minutes."""
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
    await delivered(b)
    ended = []
    for stream in (*a.rpc._pool._idle[b.id], *b.rpc._acceptor.streams):
        for part in (stream, stream.frames):
            ended.append(asyncio.Event())
            weakref.finalize(part, ended[-1].set)
    assert {stream.is_direct for stream in a.rpc._pool._idle[b.id]} == {False, True}
    del stream, part
    gc.collect()
    gc.disable()
    try:
        a.rpc._pool.drop_idle(b.id)
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(each.wait() for each in ended))
    finally:
        gc.enable()


async def test_no_handshakes_are_made_for_what_is_smaller_than_they_are(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    before = a.rpc.meter.direct_bytes
    assert (await a.rpc.push(b.id, HEADER, PAYLOAD[: LEAST_DIRECT_BYTES - 1], DEADLINE_S)).accepted
    assert len(await delivered(b)) == LEAST_DIRECT_BYTES - 1
    assert a.rpc.meter.direct_bytes == before


async def test_a_peer_without_a_data_port_is_sent_to_over_p2pd(start_direct: StartDirect, start_peer: StartPeer) -> None:
    """And one that knows of none ends the stream that asks, without a word against whoever asked."""
    a, b = await start_direct(), await start_direct(DirectOptions(hosts=()))
    old = await start_peer()
    with pytest.raises(CallFailed, match="no data port"):
        await a.rpc.signal(b.id, {"kind": "direct", "certificate": b"-"}, DEADLINE_S, Purpose.DIRECT)
    await old.daemon.stop()
    assert not a.direct.is_open(b.id)
    assert (await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)).accepted
    assert await delivered(b) == PAYLOAD
    assert a.rpc.meter.direct_bytes == 0


async def test_a_transfer_that_is_cut_goes_on_over_p2pd(start_direct: StartDirect) -> None:
    """Nothing is sent twice but what was under way, and the payload is whole."""
    a, b = await start_direct(), await start_direct()
    async with Switch(b.direct.port) as switch:
        await switch.between(a, b)
        switch.cut_after(len(PAYLOAD) // 2)
        result = await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
        assert switch.has_cut
        assert result.accepted
        assert await delivered(b) == PAYLOAD
        by_p2pd = a.rpc.meter.payload_bytes["Forward"] - a.rpc.meter.direct_bytes
        assert len(PAYLOAD) // 4 < by_p2pd < 3 * len(PAYLOAD) // 4
        assert not a.direct.is_open(b.id)


async def test_the_acknowledgement_that_was_cut_off_is_asked_for(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    async with Switch(b.direct.port) as switch:
        await switch.between(a, b)
        switch.cut_answers(len(PAYLOAD))
        result = await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
        assert switch.has_cut
        assert result.accepted
        assert await delivered(b) == PAYLOAD
        assert b.handlers.heard.empty()


async def test_a_peer_that_is_gone_is_reported_at_once(start_direct: StartDirect) -> None:
    """Its p2pd says so: direct streams add no wait and no doubt."""
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    await b.rpc.stop()
    await b.daemon.stop()
    with pytest.raises(PushFailed) as failed:
        await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
    assert failed.value.kind in (FailureKind.UNREACHABLE, FailureKind.BROKEN)


async def test_a_port_that_refuses_costs_nothing(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    await b.direct.stop()
    for stream in [stream for stream in b.rpc._acceptor.streams if stream.is_direct]:
        stream.end("closed by a test")
    assert (await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)).accepted
    assert await delivered(b) == PAYLOAD


async def test_another_port_is_found(start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart: the door is shut, and open again when the peer was asked once more."""
    monkeypatch.setattr(doors, "FIRST_RETRY_S", 0.0)
    a, b = await start_direct(), await start_direct()
    await a.opened(b)
    old = b.direct.port
    a.direct.failed(b.id, "its port is gone")
    listener = b.direct._listener
    assert listener is not None and listener._accept is not None
    await listener.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may not be quite over
        with suppress(OSError):  # then somebody else has it
            taken.bind(("127.0.0.1", old))
            taken.listen()
        listener.start(listener._accept)
        assert b.direct.port != old
        await a.opened(b)
    before = a.rpc.meter.direct_bytes
    await a.rpc.push(b.id, HEADER, PAYLOAD, DEADLINE_S)
    assert a.rpc.meter.direct_bytes > before


async def test_a_certificate_of_somebody_else_is_refused(start_direct: StartDirect) -> None:
    a, b, c = await start_direct(), await start_direct(), await start_direct()
    with pytest.raises(CallFailed, match="it is of"):
        await a.rpc.signal(b.id, {"kind": "direct", "certificate": c.direct._own.der}, DEADLINE_S, Purpose.DIRECT)


async def test_a_ticket_without_the_key_opens_nothing(start_direct: StartDirect) -> None:
    """c has seen a's ticket on the line and comes with its own certificate; and with none."""
    a, b, c = await start_direct(), await start_direct(), await start_direct()
    answer = await a.rpc.signal(b.id, {"kind": "direct", "certificate": a.direct._own.der}, DEADLINE_S, Purpose.DIRECT)
    context = doors.context_for(c.direct._own, answer["certificate"], is_server=False)
    stolen = doors.Invitation("127.0.0.1", answer["port"], answer["ticket"], answer["certificate"], context)
    reader, writer = await doors._connect(stolen)
    writer.write(b"\x00" * 8)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError, OSError)):
        await reader.readexactly(8)
    writer.transport.abort()
    assert not [stream for stream in b.rpc._acceptor.streams if stream.is_direct]


async def test_who_shows_nothing_is_sent_away_and_few_of_them_wait(start_direct: StartDirect) -> None:
    a, b = await start_direct(), await start_direct()
    ports = [socket.create_connection(("127.0.0.1", b.direct.port)) for _ in range(MOST_UNKNOWN_OF_ONE + 1)]
    try:
        for each in ports:
            each.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_S):
            assert await is_ended(ports[-1])
            await loop.sock_sendall(ports[0], PRELUDE + b"0" * 16)
            assert await is_ended(ports[0])
    finally:
        for each in ports:
            each.close()
    await a.opened(b)
