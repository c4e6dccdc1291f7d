"""Caps, urgency and limits hold on direct streams as they do on p2pd's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.rpc.api import CallFailed, RpcOptions
from gwtf_p2p.live.rpc.greeting import Purpose
from gwtf_p2p.protocol.trust.stream_quotas import STREAM_LIMITS, Share
from tests.live.conftest import DEADLINE_S, RUN
from tests.live.direct.conftest import DirectPeer, StartDirect

pytestmark = pytest.mark.live

SIZE, RATE = 1_000_000, 2_000_000.0


async def went_directly(giver: DirectPeer, taker: DirectPeer, size: int) -> bool:
    """Whether payloads that are pushed now go past p2pd."""
    before = giver.rpc.meter.direct_bytes
    await giver.rpc.push(taker.id, {"kind": "Forward"}, bytes(size), DEADLINE_S)
    return giver.rpc.meter.direct_bytes - before == size


@pytest.mark.parametrize("capped", ["up", "down"])
async def test_payloads_take_no_less_time_than_the_cap_allows(capped: str, start_direct: StartDirect) -> None:
    giver, taker = await start_direct(), await start_direct()
    await giver.opened(taker)
    line = giver.rpc.line if capped == "up" else taker.rpc.line
    cap = line.up if capped == "up" else line.down
    cap.bytes_per_s, cap.burst_bytes = RATE, RATE / 10
    before = giver.rpc.meter.direct_bytes
    pushes = [giver.rpc.push(taker.id, {"n": n}, bytes(SIZE), DEADLINE_S) for n in range(3)]
    seconds = max(result.seconds for result in await asyncio.gather(*pushes))
    assert giver.rpc.meter.direct_bytes - before == 3 * SIZE
    assert seconds >= (3 * SIZE - 2 * cap.burst_bytes) / RATE
    assert giver.rpc.line.up.total_bytes >= 3 * SIZE <= taker.rpc.line.down.total_bytes


async def test_a_gradient_overtakes_activations_on_a_capped_line(start_direct: StartDirect) -> None:
    giver, taker = await start_direct(), await start_direct()
    await giver.opened(taker)
    cap = giver.rpc.line.up
    cap.bytes_per_s, cap.burst_bytes = RATE / 4, RATE / 40
    kinds = ("Forward", "Forward", "average")
    before = [asyncio.ensure_future(giver.rpc.push(taker.id, {"kind": k, "n": 1}, bytes(SIZE), DEADLINE_S)) for k in kinds]
    for _ in range(3):
        await giver.rpc.call(taker.id, {"n": 0}, DEADLINE_S)
    gradient = await giver.rpc.push(taker.id, {"kind": "Backward", "n": 2}, bytes(SIZE // 4), DEADLINE_S)
    assert gradient.accepted and not any(push.done() for push in before)
    assert all(result.accepted for result in await asyncio.gather(*before))


async def test_a_barred_peer_gets_in_by_neither_way(start_direct: StartDirect) -> None:
    giver, taker = await start_direct(), await start_direct()
    await giver.opened(taker)
    assert await went_directly(giver, taker, SIZE)
    taker.rpc.bar(giver.id, 60.0)
    assert not [stream for stream in taker.rpc._acceptor.streams if stream.is_direct]
    assert await giver.direct.connect(giver.id) is None
    connection = await giver.direct.connect(taker.id)
    assert connection is None
    taker.rpc.bar(giver.id, 0.0)
    giver.rpc.path_changed(taker.id)  # streams that are kept may not have heard yet that the other end has ended them
    assert (await giver.rpc.push(taker.id, {"kind": "Forward"}, bytes(SIZE), DEADLINE_S)).accepted


async def test_who_has_no_record_is_told_no_port(start_direct: StartDirect) -> None:
    giver, taker = await start_direct(), await start_direct()
    taker.rpc.know(lambda peer: False)
    question = {"kind": "direct", "certificate": giver.direct._own.der}
    with pytest.raises(CallFailed, match="no record"):
        await giver.rpc.signal(taker.id, question, DEADLINE_S, Purpose.DIRECT)


async def test_connections_beyond_a_members_share_go_over_p2pd(start_direct: StartDirect) -> None:
    limits = replace(STREAM_LIMITS, direct=Share(member=1, stranger=0, strangers=0, everybody=8))
    giver, taker = await start_direct(), await start_direct(limits=RpcOptions(first_try_s=2.0, limits=limits))
    await giver.opened(taker)
    pushes = [giver.rpc.push(taker.id, {"kind": "Forward"}, bytes(SIZE), DEADLINE_S) for _ in range(4)]
    assert all(result.accepted for result in await asyncio.gather(*pushes))
    assert len([stream for stream in taker.rpc._acceptor.streams if stream.is_direct]) <= 1


async def test_a_secret_run_asks_for_its_token_there_too(start_direct: StartDirect) -> None:
    ours, theirs = RunSecret("sixteen characters of a token", RUN), RunSecret("another token, as long as that", RUN)
    giver, taker = await start_direct(secret=ours), await start_direct(secret=ours)
    await giver.opened(taker)
    assert await went_directly(giver, taker, SIZE)
    assert giver.rpc._pool.prover is not None
    giver.rpc._pool.prover = replace(giver.rpc._pool.prover, secret=theirs)
    giver.rpc.path_changed(taker.id)
    assert await giver.rpc._pool._direct_stream(taker.id) is None
