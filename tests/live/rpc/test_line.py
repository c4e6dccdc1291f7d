"""A volunteer's caps hold for everything that passes between real p2pds, and small messages pass beside what waits."""

from __future__ import annotations

import asyncio

import pytest

from gwtf_p2p.live.rpc.greeting import Purpose
from gwtf_p2p.live.rpc.outgoing import OutgoingStream
from tests.live.conftest import DEADLINE_S, StartPeer

pytestmark = pytest.mark.live

SIZE, RATE = 1_000_000, 2_000_000.0


@pytest.mark.parametrize("capped", ["up", "down"])
async def test_payloads_take_no_less_time_than_the_cap_allows(capped: str, start_peer: StartPeer) -> None:
    """More than one stream at once shares the cap; a slow machine makes it slower, never faster."""
    giver, taker = await start_peer(), await start_peer()
    line = giver.rpc.line if capped == "up" else taker.rpc.line
    cap = line.up if capped == "up" else line.down
    cap.bytes_per_s, cap.burst_bytes = RATE, RATE / 10
    pushes = [giver.rpc.push(taker.id, {"n": n}, bytes(SIZE), DEADLINE_S) for n in range(3)]
    seconds = max(result.seconds for result in await asyncio.gather(*pushes))
    assert seconds >= (3 * SIZE - 2 * cap.burst_bytes) / RATE
    assert giver.rpc.line.up.total_bytes >= 3 * SIZE <= taker.rpc.line.down.total_bytes
    for _ in range(3):
        kind, _, _, payload = await taker.handlers.next()
        assert kind == "delivery" and len(payload) == SIZE


async def test_a_small_message_overtakes_payloads_that_wait_for_a_capped_line(start_peer: StartPeer) -> None:
    giver, taker = await start_peer(), await start_peer()
    for line in (giver.rpc.line, taker.rpc.line):
        for cap in (line.up, line.down):
            cap.bytes_per_s, cap.burst_bytes = RATE / 4, RATE / 40
    push = asyncio.ensure_future(giver.rpc.push(taker.id, {"n": 1}, bytes(SIZE), DEADLINE_S))
    back = asyncio.ensure_future(taker.rpc.push(giver.id, {"n": 2}, bytes(SIZE), DEADLINE_S))
    for _ in range(3):
        assert (await giver.rpc.call(taker.id, {"n": 0}, DEADLINE_S))["from"] == giver.id
        assert (await taker.rpc.call(giver.id, {"n": 0}, DEADLINE_S))["from"] == taker.id
    assert not push.done() and not back.done()
    assert (await push).accepted and (await back).accepted


async def test_streams_of_signals_and_watches_count_like_all_others(start_peer: StartPeer) -> None:
    here, there = await start_peer(), await start_peer()
    assert (await here.rpc.signal(there.id, {"n": 0}, DEADLINE_S))["from"] == here.id
    assert here.rpc.meter.other_bytes > 0 < here.rpc.line.up.total_bytes
    assert here.rpc.line.down.total_bytes > 0
    frames, _ = await here.rpc._pool.open(there.id, Purpose.WATCH, OutgoingStream(lambda lost: None))
    frames.close()
    assert (frames.line, frames.meter) == (here.rpc.line, here.rpc.meter)


async def test_a_gradient_overtakes_activations_on_a_capped_line(start_peer: StartPeer) -> None:
    giver, taker = await start_peer(), await start_peer()
    cap = giver.rpc.line.up
    cap.bytes_per_s, cap.burst_bytes = RATE / 4, RATE / 40
    kinds = ("Forward", "Forward", "average")
    before = [asyncio.ensure_future(giver.rpc.push(taker.id, {"kind": k, "n": 1}, bytes(SIZE), DEADLINE_S)) for k in kinds]
    for _ in range(3):
        await giver.rpc.call(taker.id, {"n": 0}, DEADLINE_S)
    gradient = await giver.rpc.push(taker.id, {"kind": "Backward", "n": 2}, bytes(SIZE // 4), DEADLINE_S)
    assert gradient.accepted and not any(push.done() for push in before)
    assert all(result.accepted for result in await asyncio.gather(*before))
