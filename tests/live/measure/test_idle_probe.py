"""Links without traffic are probed, and one that was slow for once does not stay so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from gwtf_p2p.live.measure.idle_probe import KIND, IdleProber
from gwtf_p2p.live.measure.link_estimates import LEAST_BYTES, SAMPLES, LinkProbes
from gwtf_p2p.live.rpc.frames import clock_s
from gwtf_p2p.live.rpc.rpc import RpcOptions
from gwtf_p2p.protocol.core.sending import Urgency
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.idle_links import (
    BANDWIDTH_AGAIN_S,
    BANDWIDTH_BYTES,
    FIRST_BYTES,
    ROUND_TRIP_AGAIN_S,
    ROUND_TRIP_BYTES,
)
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkSource, PeerState, StageRecord
from tests.live.conftest import DEADLINE_S, StartPeer

OWN, NEXT, FAR = Stage(1), Stage(2), Stage(3)
A, B = PeerId("QmA"), PeerId("QmB")


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
    clock, busy = Clock(), [True]
    probes = LinkProbes(clock)
    prober = IdleProber(a.rpc, probes, OWN, lambda: busy[0])
    IdleProber(b.rpc, LinkProbes(Clock()), NEXT, lambda: False)
    view = view_of({a.id: OWN, b.id: NEXT, PeerId("QmFar"): FAR, PeerId("QmBeside"): OWN})
    await prober.look(view, clock.now)
    (first,) = probes.measurements()
    assert (first.to, first.source) == (b.id, LinkSource.PROBE), "neighbours, and nobody else"

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


async def test_waiting_for_a_stream_is_no_round_trip(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    IdleProber(b.rpc, LinkProbes(Clock()), OWN, lambda: False)
    async with AsyncExitStack() as held:
        for _ in range(RpcOptions().max_streams_per_peer):
            await held.enter_async_context(a.rpc._pool.stream(b.id, Urgency.BACKWARD))
        push = asyncio.ensure_future(a.rpc.push(b.id, {"kind": KIND}, bytes(FIRST_BYTES), DEADLINE_S))
        for _ in range(1000):
            await asyncio.sleep(0)
        free_s = clock_s()
    result = await push
    assert result.accepted and result.round_trip_s <= result.seconds <= clock_s() - free_s
