"""Links without traffic are probed, and one that was slow for once does not stay so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from gwtf_p2p.live.measure.idle_probe import KIND, IdleProber, Traffic
from gwtf_p2p.live.measure.link_estimates import LEAST_BYTES, SAMPLES, LinkProbes
from gwtf_p2p.live.rpc.frames import clock_s
from gwtf_p2p.live.rpc.rpc import RpcOptions
from gwtf_p2p.protocol.core.sending import Urgency
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.idle_links import (
    BANDWIDTH_AGAIN_S,
    BANDWIDTH_BYTES,
    FIRST_BYTES,
    LEAST_LINE_BYTES,
    MOST_PUT_OFF,
    ROUND_TRIP_AGAIN_S,
    ROUND_TRIP_BYTES,
)
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkSource, PeerState, StageRecord
from tests.live.conftest import DEADLINE_S, StartPeer

OWN, NEXT, FAR = Stage(1), Stage(2), Stage(3)
A, B = PeerId("QmA"), PeerId("QmB")


def traffic(sending: Callable[[], bool] = lambda: False, receiving: Callable[[], bool] = lambda: False) -> Traffic:
    return Traffic(sending, receiving)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def view_of(stages: dict[PeerId, Stage]) -> NetworkView:
    records = [
        StageRecord(peer=peer, run_id=RunId("r"), stage=stage, state=PeerState.ONLINE, capacity=2, sequence_number=1)
        for peer, stage in stages.items()
    ]
    return NetworkView.of(records, 3, 1000)


async def test_a_link_that_was_slow_and_that_nobody_uses_gets_its_bandwidth_back(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    clock, busy = Clock(), [False]
    probes = LinkProbes(clock)
    prober = IdleProber(a.rpc, probes, OWN, traffic(lambda: busy[0]))
    IdleProber(b.rpc, LinkProbes(Clock()), NEXT, traffic())
    view = view_of({a.id: OWN, b.id: NEXT, PeerId("QmFar"): FAR, PeerId("QmBeside"): OWN})
    await prober.look(view, clock.now)
    (first,) = probes.measurements()
    assert (first.to, first.source) == (b.id, LinkSource.PROBE), "neighbours, and nobody else"

    busy[0] = True
    for _ in range(SAMPLES):
        probes.observe(b.id, 0.001, FIRST_BYTES, 1000.0)  # while its other end started, say
    clock.now += BANDWIDTH_AGAIN_S
    await prober.look(view, clock.now)
    (slow,) = probes.measurements()
    assert slow.bandwidth_bytes_per_s < 100 and slow.source is LinkSource.TRAFFIC, "not while it sends something else"
    busy[0] = False
    clock.now += ROUND_TRIP_AGAIN_S
    await prober.look(view, clock.now)
    (again,) = probes.measurements()
    assert again.bandwidth_bytes_per_s > 1000 * slow.bandwidth_bytes_per_s


def test_a_small_probe_lowers_no_figure_that_larger_transfers_have_made() -> None:
    clock = Clock()
    probes = LinkProbes(clock)
    probes.observe(A, 0.5, 1 << 24, 1.0)
    probes.observe(B, 0.5, 1 << 24, 1.0, probe=True)
    clock.now = BANDWIDTH_AGAIN_S
    for peer in (A, B):
        probes.observe(peer, 0.1, BANDWIDTH_BYTES, 1.0, probe=True)
    told = {measured.to: measured for measured in probes.measurements()}
    assert [told[peer].bandwidth_bytes_per_s for peer in (A, B)] == [1 << 24] * 2
    assert [told[peer].round_trip_s for peer in (A, B)] == [0.1] * 2
    assert {peer: age.bandwidth_s for peer, age in probes.ages().items()} == {A: 0.0, B: 0.0}


def test_a_link_that_was_slow_for_once_is_measured_anew_and_keeps_its_bandwidth() -> None:
    for by_probe in (False, True):
        clock = Clock()
        probes = LinkProbes(clock)
        probes.observe(A, 0.5, FIRST_BYTES, 0.1, probe=by_probe)
        (before,) = probes.measurements()
        probes.observe(A, 0.001, ROUND_TRIP_BYTES, 1e-6, probe=True)
        (after,) = probes.measurements()
        assert (before.round_trip_s, after.round_trip_s) == (0.5, 0.001)
        assert after.bandwidth_bytes_per_s == before.bandwidth_bytes_per_s
        assert after.source is (LinkSource.PROBE if by_probe else LinkSource.TRAFFIC)
    assert ROUND_TRIP_BYTES < LEAST_BYTES <= FIRST_BYTES


async def test_a_probe_waits_while_either_line_carries_something_else(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    sends, receives, clock = [True], [True], Clock()
    probes = LinkProbes(clock)
    prober = IdleProber(a.rpc, probes, OWN, traffic(lambda: sends[0]))
    IdleProber(b.rpc, LinkProbes(Clock()), NEXT, traffic(receiving=lambda: receives[0]))
    view = view_of({a.id: OWN, b.id: NEXT})
    for sends[0], receives[0] in ((True, False), (False, True)):
        await prober.look(view, clock.now)
        assert not probes.measurements()
    receives[0] = False
    await prober.look(view, clock.now)
    assert [measured.to for measured in probes.measurements()] == [b.id], "at the next look, not after a minute"
    assert a.rpc.meter.payload_bytes[KIND] == FIRST_BYTES, "what was put off has cost nothing"


async def test_a_link_that_can_only_be_measured_beside_others_is_measured_so_in_the_end(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    probes = LinkProbes(Clock())
    prober = IdleProber(a.rpc, probes, OWN, traffic())
    IdleProber(b.rpc, LinkProbes(Clock()), NEXT, traffic(receiving=lambda: True))
    view = view_of({a.id: OWN, b.id: NEXT})
    for _ in range(MOST_PUT_OFF):
        await prober.look(view, 0.0)
        assert not probes.measurements()
    await prober.look(view, 0.0)
    assert [measured.to for measured in probes.measurements()] == [b.id]


async def test_several_links_are_filled_together_for_what_the_line_carries(start_peer: StartPeer) -> None:
    a, b, c = await start_peer(), await start_peer(), await start_peer()
    clock = Clock()
    probes = LinkProbes(clock)
    prober = IdleProber(a.rpc, probes, OWN, traffic())
    for other in (b, c):
        IdleProber(other.rpc, LinkProbes(Clock()), NEXT, traffic())
        probes.observe(other.id, 0.001, FIRST_BYTES, 10.0, probe=True)
        clock.now += 20.0
    one_alone = probes.line_bytes_per_s
    view = view_of({a.id: OWN, b.id: NEXT, c.id: NEXT})
    await prober.look(view, clock.now)
    assert probes.line_bytes_per_s > one_alone
    sent = a.rpc.meter.payload_bytes[KIND]
    assert sent == 2 * LEAST_LINE_BYTES
    await prober.look(view, clock.now)
    assert a.rpc.meter.payload_bytes[KIND] == sent, "once"


async def test_waiting_for_a_stream_is_no_round_trip(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    IdleProber(b.rpc, LinkProbes(Clock()), OWN, traffic())
    async with AsyncExitStack() as held:
        for _ in range(RpcOptions().max_streams_per_peer):
            await held.enter_async_context(a.rpc._pool.stream(b.id, Urgency.BACKWARD))
        push = asyncio.ensure_future(a.rpc.push(b.id, {"kind": KIND}, bytes(FIRST_BYTES), DEADLINE_S))
        for _ in range(1000):
            await asyncio.sleep(0)
        free_s = clock_s()
    result = await push
    assert result.accepted and result.round_trip_s <= result.seconds <= clock_s() - free_s
