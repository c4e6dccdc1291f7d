"""Links without traffic: who is probed, when again, and that a probe that was slow for once does not stand."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from gwtf_p2p.live.measure.idle_probe import AGAIN_BYTES, AGAIN_S, KIND, PROBE_BYTES, IdleProber
from gwtf_p2p.live.measure.link_estimates import LEAST_BYTES, LinkProbes
from gwtf_p2p.live.rpc.frames import clock_s
from gwtf_p2p.live.rpc.rpc import RpcOptions
from gwtf_p2p.protocol.core.sending import Urgency
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
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


async def test_neighbours_alone_are_probed_once_and_then_only_links_that_nobody_uses(start_peer: StartPeer) -> None:
    peer, clock = await start_peer(), Clock()
    probes = LinkProbes(clock)
    prober = IdleProber(peer.rpc, probes, OWN)
    view = view_of({A: NEXT, B: DATA_STAGE, PeerId("QmFar"): FAR, PeerId("QmBeside"): OWN, peer.id: OWN})
    assert prober.neighbours_due(view, 0.0) == [(B, PROBE_BYTES), (A, PROBE_BYTES)]
    probes.observe(A, 0.5, PROBE_BYTES, 0.1, probe=True)
    probes.observe(B, 0.5, PROBE_BYTES, 0.1)
    assert prober.neighbours_due(view, 0.0) == []
    clock.now = AGAIN_S
    probes.observe(B, 0.5, PROBE_BYTES, 0.1)
    assert prober.neighbours_due(view, clock.now) == [(A, AGAIN_BYTES)]


def test_a_link_that_was_slow_for_once_is_measured_anew_and_keeps_its_bandwidth() -> None:
    for by_probe in (False, True):
        clock = Clock()
        probes = LinkProbes(clock)
        probes.observe(A, 0.5, PROBE_BYTES, 0.1, probe=by_probe)
        (before,) = probes.measurements()
        probes.observe(A, 0.001, AGAIN_BYTES, 1e-6, probe=True)
        (after,) = probes.measurements()
        assert (before.round_trip_s, after.round_trip_s) == (0.5, 0.001)
        assert after.bandwidth_bytes_per_s == before.bandwidth_bytes_per_s
        assert after.source is (LinkSource.PROBE if by_probe else LinkSource.TRAFFIC)
    assert AGAIN_BYTES < LEAST_BYTES <= PROBE_BYTES


async def test_waiting_for_a_stream_is_no_round_trip(start_peer: StartPeer) -> None:
    a, b = await start_peer(), await start_peer()
    IdleProber(b.rpc, LinkProbes(Clock()), OWN)
    async with AsyncExitStack() as held:
        for _ in range(RpcOptions().max_streams_per_peer):
            await held.enter_async_context(a.rpc._pool.stream(b.id, Urgency.BACKWARD))
        push = asyncio.ensure_future(a.rpc.push(b.id, {"kind": KIND}, bytes(PROBE_BYTES), DEADLINE_S))
        for _ in range(1000):
            await asyncio.sleep(0)
        free_s = clock_s()
    result = await push
    assert result.accepted and result.round_trip_s <= result.seconds <= clock_s() - free_s
