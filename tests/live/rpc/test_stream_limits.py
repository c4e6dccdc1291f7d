"""What one sender may take of a peer's streams and memory, between real p2pds; the rules are `protocol/trust/stream_quotas`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from gwtf_p2p.live.libp2p.dialling import StreamRefused, open_stream
from gwtf_p2p.live.rpc.frames import FRAME_HEADER, Frame
from gwtf_p2p.live.rpc.greeting import Purpose, protocol_name
from gwtf_p2p.live.rpc.rpc import RpcOptions
from gwtf_p2p.protocol.trust.stream_quotas import STREAM_LIMITS, Share
from tests.live.conftest import DEADLINE_S, RUN, LivePeer, StartPeer
from tests.live.rpc.test_rpc import Half

pytestmark = pytest.mark.live


def limited(**shares: Share) -> RpcOptions:
    return RpcOptions(first_try_s=2.0, limits=replace(STREAM_LIMITS, **shares))


async def no_answer(peer: LivePeer, to: LivePeer) -> None:
    """A stream is ended instead of answered."""
    with pytest.raises(StreamRefused, match="ended during the greeting"):
        await Half.open(peer, to)


async def test_strangers_get_few_streams_and_members_theirs_all_the_same(
    start_peer: StartPeer, caplog: pytest.LogCaptureFixture
) -> None:
    a, stranger, member = await start_peer(limits=limited(streams=Share(3, 2, 3, 8))), await start_peer(), await start_peer()
    a.rpc.know(lambda peer: peer == member.id)
    kept = [await Half.open(stranger, a) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await no_answer(stranger, a)
    kept += [await Half.open(member, a) for _ in range(3)]
    assert a.rpc._acceptor.refusals.counts == {"transfer streams": 3}
    assert len([record for record in caplog.records if "refused strangers" in record.getMessage()]) == 1
    kept[0].close()
    async with asyncio.timeout(DEADLINE_S):
        while len(a.rpc._acceptor.streams) > 4:  # noqa: ASYNC110  its end is noticed when p2pd says so
            await asyncio.sleep(0.01)
    await Half.open(stranger, a)


async def test_whoever_has_most_streams_gives_way_when_there_are_no_more(start_peer: StartPeer) -> None:
    a, greedy, late = await start_peer(limits=limited(streams=Share(3, 0, 0, 3))), await start_peer(), await start_peer()
    first, *_ = [await Half.open(greedy, a) for _ in range(3)]
    assert (await late.rpc.call(a.id, {"kind": "x"}, DEADLINE_S))["from"] == late.id
    await first.lost()
    senders = sorted(stream.sender for stream in a.rpc._acceptor.streams)
    assert senders == sorted([greedy.id, greedy.id, late.id])


async def test_a_stream_on_which_nothing_is_said_is_ended_unless_it_watches(start_peer: StartPeer) -> None:
    a, b = await start_peer(limits=RpcOptions(half_frame_s=0.05, idle_accepted_s=0.1)), await start_peer()
    watching, silent = await Half.open(b, a, Purpose.WATCH), await Half.open(b, a)
    async with asyncio.timeout(DEADLINE_S):
        await silent.lost()
    assert [stream.purpose for stream in a.rpc._acceptor.streams] == [Purpose.WATCH]
    assert not watching.frames.is_closed


async def test_a_frame_that_comes_byte_by_byte_is_not_waited_for(start_peer: StartPeer) -> None:
    a, b = await start_peer(limits=RpcOptions(half_frame_s=0.05, whole_frame_s=0.2)), await start_peer()
    half = await Half.open(b, a)
    half.frames._transport.write(FRAME_HEADER.pack(Frame.CALL, 1 << 19))
    async with asyncio.timeout(DEADLINE_S):
        while not half.frames.is_closed:
            half.frames._transport.write(b"x")
            await asyncio.sleep(0.01)
    assert not a.rpc._acceptor.frame_bytes


async def test_what_has_come_half_of_one_senders_frames_is_bounded_together(start_peer: StartPeer) -> None:
    a, b = await start_peer(limits=limited(frame_bytes=Share(1000, 0, 0, 1 << 20))), await start_peer()

    async def begun(length: int) -> Half:
        half = await Half.open(b, a)
        half.frames._transport.write(FRAME_HEADER.pack(Frame.CALL, length) + b"x")
        return half

    async def held(total: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while sum(a.rpc._acceptor.frame_bytes.values()) != total:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    first = await begun(900)
    await held(900)
    await (await begun(200)).lost()
    assert a.rpc._acceptor.refusals.counts == {"bytes of half frames": 1}
    first.close()
    await held(0)
    second = await begun(600)
    await held(600)
    second.frames._transport.write(bytes(599))  # whole by now: no map, so the stream is ended; its bytes are free again
    await held(0)


async def test_streams_that_never_say_what_they_are_for_are_few(start_peer: StartPeer) -> None:
    a, b = await start_peer(limits=limited(greetings=Share(9, 2, 2, 9))), await start_peer()
    a.rpc.know(lambda peer: False)
    silent = [await open_stream(b.daemon.control_path, a.id, protocol_name(RUN)) for _ in range(3)]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait([asyncio.ensure_future(reader.read()) for reader, _ in silent], return_when=asyncio.FIRST_COMPLETED)
    assert a.rpc._acceptor.refusals.counts["streams that say nothing"] >= 1
    for _, writer in silent:
        writer.transport.abort()


async def test_payloads_of_one_sender_leave_room_for_another(start_peer: StartPeer) -> None:
    a, b, c = await start_peer(limits=RpcOptions(payload_bytes=Share(1500, 0, 0, 3000))), await start_peer(), await start_peer()
    half = await Half.offered(b, a, {"n": 0}, 1000)
    assert (await b.rpc.push(a.id, {}, bytes(1000), DEADLINE_S)).reply["verdict"] == "BUSY"
    assert (await c.rpc.push(a.id, {}, bytes(1000), DEADLINE_S)).accepted
    half.close()
    assert a.rpc._acceptor.refusals.counts == {"bytes of payloads": 1}
