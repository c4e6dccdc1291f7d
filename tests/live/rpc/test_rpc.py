"""The data plane between real p2pds: what arrives, what is refused, what breaks, and who is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from gwtf_p2p.live.libp2p.dialling import StreamRefused, open_stream
from gwtf_p2p.live.rpc.api import PushResult, pack, unpack
from gwtf_p2p.live.rpc.frames import CHUNK_BYTES, END_BODY, Frame
from gwtf_p2p.live.rpc.greeting import GREETING, MAGIC, Greeted, Purpose, open_frames, protocol_name
from gwtf_p2p.live.rpc.incoming import OFFER_HEAD
from gwtf_p2p.live.rpc.rpc import CallFailed, FailureKind, Header, PushFailed, RpcOptions
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.stream_quotas import Share
from gwtf_p2p.protocol.wire.records import WIRE_VERSION
from tests.live.conftest import DEADLINE_S, RUN, LivePeer, Recorder, StartPeer

pytestmark = pytest.mark.live


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(count).bytes(count)


async def test_a_push_arrives_whole_and_is_acknowledged(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    for size in (0, 1, 5000, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 17):
        payload = random_bytes(size)
        result = await a.rpc.push(b.id, {"kind": "x", "n": size}, payload, DEADLINE_S)
        kind, sender, header, received = await b.handlers.next()
        assert (kind, sender, header) == ("delivery", a.id, {"kind": "x", "n": size})
        assert bytes(received) == payload and not received.readonly
        assert result.accepted and result.reply == {"accepted": True} and result.sent_bytes == size
        assert 0 < result.round_trip_s <= result.seconds and result.transfer_s > 0


@pytest.mark.parametrize(
    ("seconds", "receive_s", "waited", "expected"),
    [
        (1.4, 1.0, False, 1.0),
        (1.8, 1.4, True, 1.0),  # the receiver counts from its verdict on
        (0.81, 0.41, True, 0.025),
        (1.4, 1.2, False, 1.2),
    ],
)
def test_what_a_payload_takes_has_no_round_trip_in_it(seconds: float, receive_s: float, waited: bool, expected: float) -> None:
    """Far peers would seem to have narrow links."""
    result = PushResult({}, True, 1 << 16, seconds, 0.4, receive_s, waited)
    assert abs(result.transfer_s - expected) < 1e-9


async def test_a_push_that_waits_for_its_verdict_says_so(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    results = [await a.rpc.push(b.id, {}, bytes(1 << 16), DEADLINE_S, eager=eager) for eager in (True, False)]
    assert [result.waited for result in results] == [False, True]


async def test_one_stream_carries_many_pushes_and_both_directions_work(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    for number in range(40):
        for giver, taker in ((a, b), (b, a)):
            payload = random_bytes(1000 + number)
            await giver.rpc.push(taker.id, {"n": number}, payload, DEADLINE_S)
            assert bytes((await taker.handlers.next())[3]) == payload
    assert len(b.rpc._acceptor.streams) == len(a.rpc._acceptor.streams) == 1


async def test_concurrent_pushes_do_not_mix(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    payloads = {n: random_bytes(100_000 + n * 10_001) for n in range(20)}
    await asyncio.gather(*(a.rpc.push(b.id, {"n": n}, payload, DEADLINE_S) for n, payload in payloads.items()))
    heard = [await b.handlers.next() for _ in payloads]
    assert {header["n"]: bytes(payload) for _, _, header, payload in heard} == payloads
    assert len(b.rpc._acceptor.streams) <= 8 and b.rpc._acceptor.inflight_bytes == 0


async def test_a_refusal_stops_the_payload_and_the_stream_lives_on(start_peer: StartPeer) -> None:
    a = await start_peer()
    b = await start_peer(answer=lambda header: {"accepted": header["n"] == 1, "verdict": "BUSY"})
    payload = random_bytes(40 * CHUNK_BYTES)
    refused = await a.rpc.push(b.id, {"n": 0}, payload, DEADLINE_S)
    assert not refused.accepted and refused.reply["verdict"] == "BUSY"
    patient = await a.rpc.push(b.id, {"n": 0}, payload, DEADLINE_S, eager=False)
    assert patient.sent_bytes == 0
    taken = await a.rpc.push(b.id, {"n": 1}, payload, DEADLINE_S)
    assert taken.accepted and bytes((await b.handlers.next())[3]) == payload
    assert len(b.rpc._acceptor.streams) == 1


async def test_payloads_over_the_bounds_are_refused_before_any_memory_is_taken(start_peer: StartPeer) -> None:
    limits = RpcOptions(max_payload_bytes=1000, payload_bytes=Share(1500, 0, 0, 1500))
    a, b = await start_peer(), await start_peer(limits=limits)
    too_big = await a.rpc.push(b.id, {}, bytes(1001), DEADLINE_S)
    assert not too_big.accepted and "over the bound of 1000" in too_big.reply["reason"]
    half = await Half.offered(a, b, {"n": 0}, 1000)
    too_much = await a.rpc.push(b.id, {}, bytes(1000), DEADLINE_S)
    assert too_much.reply["verdict"] == "BUSY"
    half.close()
    assert (await b.handlers.next())[0] == "broken"
    assert (await a.rpc.push(b.id, {}, bytes(1000), DEADLINE_S)).accepted


async def test_a_payload_that_never_ends_is_reported_broken_once(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    half = await Half.offered(a, b, {"n": 3}, 5000)
    half.frames.send(Frame.DATA, bytes(2000))
    half.close()
    kind, sender, header, reason = await b.handlers.next()
    assert (kind, sender, header) == ("broken", a.id, {"n": 3}) and reason
    assert b.handlers.heard.empty() and b.rpc._acceptor.inflight_bytes == 0


async def test_a_cancelled_push_is_broken_at_the_receiver(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    accepted = asyncio.Event()
    b.handlers.answer = lambda header: accepted.set() or {"accepted": True}  # type: ignore[func-returns-value]
    push = asyncio.create_task(a.rpc.push(b.id, {"n": 1}, bytes(200 * CHUNK_BYTES), DEADLINE_S))
    async with asyncio.timeout(DEADLINE_S):
        await accepted.wait()
    push.cancel()
    assert (await b.handlers.next())[0] == "broken"
    with pytest.raises(asyncio.CancelledError):
        await push


async def test_wrong_length_or_checksum_is_corrupt_at_both_ends(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    for length, checksum in ((4999, 0), (5000, 1)):
        half = await Half.offered(a, b, {}, 5000)
        half.frames.send(Frame.DATA, bytes(length))
        half.frames.send(Frame.END, END_BODY.pack(length, checksum))
        assert (await b.handlers.next())[0] == "broken"
        assert unpack(await half.receive(Frame.ACK))["failure"] == FailureKind.CORRUPT.value
        half.close()


async def test_calls_are_answered_with_the_authenticated_sender(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    reply = await a.rpc.call(b.id, {"from": "somebody else"}, DEADLINE_S)
    assert reply == {"from": a.id, "accepted": True}
    replies = await asyncio.gather(*(a.rpc.call(b.id, {"n": n}, DEADLINE_S) for n in range(50)))
    assert len(replies) == 50


async def test_a_large_call_does_not_hang(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer(answer=lambda header: {"echo": header["text"]})
    text = "x" * 900_000
    assert (await a.rpc.call(b.id, {"text": text}, DEADLINE_S))["echo"] == text
    with pytest.raises(CallFailed, match="over the bound") as failed:
        await a.rpc.call(b.id, {"text": "x" * 1_100_000}, DEADLINE_S)
    assert failed.value.kind is FailureKind.TOO_LARGE
    with pytest.raises(PushFailed, match="over the bound") as failed_push:
        await a.rpc.push(b.id, {"text": "x" * 1_100_000}, b"1234", DEADLINE_S)
    assert failed_push.value.kind is FailureKind.TOO_LARGE


async def test_a_handler_that_finds_a_breach_refuses_with_its_reason(start_peer: StartPeer) -> None:
    def breach(header: Header) -> Header:
        raise RemoteProtocolError("no such message")

    a, b = await start_peer(), await start_peer(answer=breach)
    with pytest.raises(CallFailed, match="no such message") as failed:
        await a.rpc.call(b.id, {}, DEADLINE_S)
    assert failed.value.kind is FailureKind.REFUSED
    result = await a.rpc.push(b.id, {}, b"1234", DEADLINE_S)
    assert not result.accepted and result.reply["reason"] == "no such message"


async def test_a_kind_with_its_own_service_does_not_reach_the_main_handlers(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    own = Recorder(answer=lambda header: {"accepted": True, "own": True})
    b.rpc.add_service("special", own)
    assert (await a.rpc.push(b.id, {"kind": "special"}, b"abc", DEADLINE_S)).reply["own"] is True
    assert bytes((await own.next())[3]) == b"abc" and b.handlers.heard.empty()
    with pytest.raises(ValueError, match="has a service already"):
        b.rpc.add_service("special", own)


async def test_a_breach_of_the_framing_ends_the_stream_and_nothing_else(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    breaches = {
        "not msgpack": b"\x07\x00\x00\x00\x01\xc1",
        "not a map": b"\x07\x00\x00\x00\x01\x90",
        "an unknown frame": b"\x63\x00\x00\x00\x00",
        "END without OFFER": b"\x04\x00\x00\x00\x00",
        "a header of 4 GiB": b"\x01\xff\xff\xff\xff",
    }
    for breach in breaches.values():
        half = await Half.open(a, b)
        half.frames._transport.write(breach)
        await half.lost()
    assert (await a.rpc.call(b.id, {}, DEADLINE_S))["from"] == a.id


async def test_more_data_than_offered_is_a_breach(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    half = await Half.offered(a, b, {}, 100)
    half.frames.send(Frame.DATA, bytes(101))
    assert (await b.handlers.next())[0] == "broken"
    await half.lost()


async def test_a_peer_of_another_run_and_an_unknown_peer_are_unreachable(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    await b.rpc.stop()
    with pytest.raises(PushFailed) as failed:
        await a.rpc.push(b.id, {}, b"x", DEADLINE_S)
    assert failed.value.kind is FailureKind.UNREACHABLE
    nobody = PeerId("12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK")
    with pytest.raises(CallFailed) as failed_call:
        await a.rpc.call(nobody, {}, DEADLINE_S)
    assert failed_call.value.kind is FailureKind.UNREACHABLE


async def test_a_frozen_peer_is_a_timeout_and_a_killed_one_is_noticed_at_once(
    start_peer: StartPeer, peer_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    """A frozen process keeps its streams, so only the deadline tells; a dead one breaks its watch."""
    a = await start_peer()
    process, peer = await join(a, peer_process)
    a.rpc.watch(peer)
    await a.rpc.call(peer, {}, DEADLINE_S)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(CallFailed) as failed:
        await a.rpc.call(peer, {}, 0.2, idempotent=True)
    assert failed.value.kind is FailureKind.TIMEOUT
    with pytest.raises(PushFailed) as failed_push:
        await a.rpc.push(peer, {}, b"x", 0.2)
    assert failed_push.value.kind is FailureKind.UNREACHABLE and a.handlers.heard.empty()
    os.kill(process.pid, signal.SIGCONT)
    push = asyncio.create_task(a.rpc.push(peer, {}, bytes(200 * CHUNK_BYTES), DEADLINE_S))
    await a.rpc.call(peer, {}, DEADLINE_S)
    process.kill()
    kind, lost, reason = await a.handlers.next()
    assert (kind, lost) == ("watch", peer) and reason
    with pytest.raises(PushFailed):
        await push
    a.rpc.watch(peer)
    assert (await a.handlers.next())[:2] == ("watch", peer)
    assert a.handlers.heard.empty()


async def test_an_unwatched_peer_is_not_reported(start_peer: StartPeer) -> None:
    a, b, c = await start_peer(), await start_peer(), await start_peer()
    a.rpc.watch(b.id)
    a.rpc.watch(c.id)
    await a.rpc.call(b.id, {}, DEADLINE_S)
    a.rpc.unwatch(b.id)
    await b.daemon.stop()
    await c.daemon.stop()
    assert (await a.handlers.next())[:2] == ("watch", c.id)
    assert a.handlers.heard.empty()


async def test_whoever_opens_a_stream_in_another_wire_version_is_told_which_one_is_spoken_here(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    reader, writer = await open_stream(a.daemon.control_path, b.id, protocol_name(RUN))
    writer.write(GREETING.pack(MAGIC, WIRE_VERSION + 1, Purpose.TRANSFER))
    async with asyncio.timeout(DEADLINE_S):
        answer = GREETING.unpack(await reader.readexactly(GREETING.size))
    assert answer == (MAGIC, WIRE_VERSION, Greeted.WRONG_VERSION)
    writer.transport.abort()
    assert not b.rpc._acceptor.streams


async def test_a_stream_that_was_refused_for_its_wire_version_names_both(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    ended = asyncio.Event()

    async def accept(info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(GREETING.size)
        writer.write(GREETING.pack(MAGIC, WIRE_VERSION + 1, Greeted.WRONG_VERSION))
        await reader.read()
        writer.transport.abort()
        ended.set()

    await b.daemon.p2p.add_binary_stream_handler("gwtf/newer", accept)
    with pytest.raises(StreamRefused, match=f"it speaks wire version {WIRE_VERSION + 1}, this peer {WIRE_VERSION}"):
        await open_frames(a.daemon.control_path, b.id, "gwtf/newer", Purpose.TRANSFER, Half())
    async with asyncio.timeout(DEADLINE_S):
        await ended.wait()


class Half:
    """One end of a stream, driven by hand, to say what a correct sender never would."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[tuple[Frame | None, bytes]] = asyncio.Queue()

    @staticmethod
    async def open(a: LivePeer, b: LivePeer, purpose: Purpose = Purpose.TRANSFER) -> Half:
        half = Half()
        half.frames, _ = await open_frames(a.daemon.control_path, PeerId(b.id), protocol_name(RUN), purpose, half)
        return half

    @staticmethod
    async def offered(a: LivePeer, b: LivePeer, header: Header, size: int) -> Half:
        half = await Half.open(a, b)
        half.frames.send(Frame.OFFER, OFFER_HEAD.pack(size, 0), pack(header))
        await half.receive(Frame.VERDICT)
        return half

    def on_frame(self, kind: Frame, body: bytes) -> None:
        self.arrived.put_nowait((kind, body))

    def on_lost(self, reason: str) -> None:
        self.arrived.put_nowait((None, b""))

    async def receive(self, kind: Frame) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            arrived, body = await self.arrived.get()
        assert arrived is kind
        return body

    async def lost(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            assert (await self.arrived.get())[0] is None

    def close(self) -> None:
        self.frames.close()


async def join(a: LivePeer, peer_process: Callable[[str], subprocess.Popen[str]]) -> tuple[subprocess.Popen[str], PeerId]:
    """A peer in its own process, and its id."""
    process = peer_process((await a.daemon.maddrs())[0])
    assert process.stdout is not None
    line = await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
    return process, PeerId(line.strip())
