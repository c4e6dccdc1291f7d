"""Links and devices that this machine does not have, imposed at the edge of a real peer (`gwtf ab --backend live`).

Everything else stays real: processes, libp2p, transfers, computing, averaging, records. What is imposed:

- **Links.** One process of the machine (the *wire*, `gwtf_p2p/ab/wire`) shares all lines as the scenario draws them: each
  transfer has a rate, max-min fair over its link, the sender's line upwards and the receiver's line downwards. A push asks
  the wire, sends its header after one latency, and its end, without which the bytes do not count, when the wire says that
  the last one has left and one more latency has passed; the receiver's answers take a latency too. That holds on p2pd's
  and on direct streams, for activations, gradients, averages, state downloads and probes alike. Small messages take a latency
  each way and no line.
  Lookups in the DHT take the median round trip of this peer's links; a broken connection is heard of one latency late.
- **Sizes.** A transfer of the run's small model is charged as the bytes of the scenario's model: its own bytes times the
  factor of its kind.
- **The device.** Each computation is really done and then waited out until the scenario's time is over, in the compute thread,
  so that a device does one thing at a time and no core is burned.
- **The star** of `swarm-hub`: what goes from stage peer to stage peer is charged to the lines of the data peer in between.
  Its bytes still go directly; only the time and the lines are the star's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from gwtf_p2p.live.discovery.dht import Records
from gwtf_p2p.live.discovery.order_book import SignedOrder
from gwtf_p2p.live.discovery.signing import OwnedRun
from gwtf_p2p.live.emulation.wire_client import Load, Passage, WireClient
from gwtf_p2p.live.rpc.api import (
    CallFailed,
    FailureKind,
    Header,
    Payload,
    PushResult,
    RpcFailed,
    RpcHandlers,
    RpcService,
)
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.live.state.options import CHUNK_BYTES, LEAST_CHUNK_BYTES
from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.contribution_record import ContributionRecord
from gwtf_p2p.protocol.wire.records import StageRecord
from gwtf_p2p.protocol.wire.signed import EntryTerms

MICROBATCH, AVERAGE, STATE = "microbatch", "average", "state"
_CLASSES = {"Forward": MICROBATCH, "Backward": MICROBATCH, "average": AVERAGE, "state_chunk": STATE}


@dataclass(frozen=True)
class Emulation:
    """What one peer is told. `latency_s`: one way, by pair; pairs that are not in it (the bootstrap peer) are near.

    `bytes_factor`: by class of transfer (microbatch, average, state). `links` False: real links, only noted. `work_s`: empty
    for the real device.
    """

    socket: Path
    links: bool = True
    latency_s: Mapping[tuple[PeerId, PeerId], float] = field(default_factory=dict)
    bytes_factor: Mapping[str, float] = field(default_factory=dict)
    work_s: Mapping[Work, float] = field(default_factory=dict)
    star: bool = False

    @property
    def chunk_bytes(self) -> int:
        """Of a state, for as many chunks as one of the scenario's model would have."""
        return max(LEAST_CHUNK_BYTES, min(CHUNK_BYTES, int(CHUNK_BYTES / self.bytes_factor.get(STATE, 1.0))))

    def between_s(self, one: PeerId, other: PeerId) -> float:
        """Latency, one way."""
        return self.latency_s.get((one, other), 0.0) if self.links else 0.0

    def lookup_s(self, me: PeerId) -> float:
        """Of a lookup in the DHT: one round trip to a peer at the middle distance."""
        return 2 * median([s for (one, _), s in self.latency_s.items() if one == me and self.links] or [0.0])


class EmulatedRpc:
    """A `DataPlane` over emulated links: the methods of `Rpc` that a peer needs, with the same meaning."""

    def __init__(self, rpc: Rpc, emulation: Emulation, wire: WireClient) -> None:
        self._rpc, self._emulation, self._wire = rpc, emulation, wire

    @property
    def peer_id(self) -> PeerId:
        return self._rpc.peer_id

    async def start(self, handlers: RpcHandlers) -> None:
        await self._rpc.start(_LateNews(handlers, self.latency_s))

    def add_service(self, kind: str, service: RpcService) -> None:
        self._rpc.add_service(kind, service)

    async def stop(self) -> None:
        await self._rpc.stop()

    def watch(self, peer: PeerId) -> None:
        self._rpc.watch(peer)

    def unwatch(self, peer: PeerId) -> None:
        self._rpc.unwatch(peer)

    def bar(self, peer: PeerId, seconds: float) -> None:
        self._rpc.bar(peer, seconds)

    def latency_s(self, peer: PeerId) -> float:
        """One way."""
        return self._emulation.between_s(self.peer_id, peer)

    async def push(self, to: PeerId, header: Header, payload: Payload, deadline_s: float, *, eager: bool = True) -> PushResult:
        """See `Rpc.push`. Times and bandwidth in the result are the emulated ones. Raises PushFailed."""
        clock, way = asyncio.get_running_loop().time, self._way(to, header)
        passage = self._passage(to, header, memoryview(payload).nbytes, way.via)

        async def gate() -> None:
            if not eager:
                await asyncio.sleep(way.back_s)
                passage.begin()
            await passage.sent()
            await asyncio.sleep(way.last_s)

        began = clock()
        try:
            if eager:
                passage.begin()
            await asyncio.sleep(way.first_s)
            result = await self._rpc.push(to, header, payload, deadline_s, eager=False, gate=gate)
            await asyncio.sleep(way.back_s)
            return replace(_seen(result, clock() - began, way.first_s + way.back_s, passage.seconds), waited=not eager)
        except RpcFailed:
            await asyncio.sleep(way.back_s)
            raise
        finally:
            passage.end()

    async def call(self, to: PeerId, header: Header, deadline_s: float, *, idempotent: bool = False) -> Header:
        """See `Rpc.call`. Raises CallFailed."""
        latency_s = self.latency_s(to)
        self._wire.calls += 1
        if 2 * latency_s >= deadline_s:
            await asyncio.sleep(deadline_s)
            raise CallFailed(to, FailureKind.TIMEOUT, f"no answer within {deadline_s:.1f} s")
        await asyncio.sleep(latency_s)
        try:
            return await self._rpc.call(to, header, deadline_s - 2 * latency_s, idempotent=idempotent)
        finally:
            await asyncio.sleep(latency_s)

    def _way(self, to: PeerId, header: Header) -> _Way:
        between_s, me, via = self._emulation.between_s, self.peer_id, None
        microbatch = header.get("microbatch")
        if self._emulation.star and isinstance(microbatch, dict):
            hub = PeerId(str(microbatch.get("data_peer")))
            via = None if hub in (me, to) else hub
        direct_s = between_s(me, to)
        if via is None:
            return _Way(direct_s, direct_s, direct_s, None)
        last_s = between_s(via, to)
        return _Way(between_s(me, via) + last_s, last_s, direct_s, via)

    def _passage(self, to: PeerId, header: Header, size: int, via: PeerId | None) -> Passage:
        kind = str(header.get("kind"))
        factor = self._emulation.bytes_factor.get(_CLASSES.get(kind, MICROBATCH), 1.0)
        microbatch = header.get("microbatch")
        about = f"{microbatch.get('iteration')}/{microbatch.get('index')}" if isinstance(microbatch, dict) else ""
        return self._wire.passage(Load(to, round(size * factor), kind.lower(), about, via))


@dataclass(frozen=True, slots=True)
class _Way:
    """Seconds of a header to the receiver, of the last leg, and of the answer; `via`: the data peer in between in a star."""

    first_s: float
    last_s: float
    back_s: float
    via: PeerId | None


def _seen(result: PushResult, seconds: float, latencies_s: float, passage_s: float) -> PushResult:
    """`passage_s`: how long the payload was on the lines, as the receiver would have measured it."""
    round_trip_s = result.round_trip_s + latencies_s
    receive_s = passage_s if result.accepted else 0.0
    return replace(result, seconds=max(seconds, round_trip_s), round_trip_s=round_trip_s, receive_s=receive_s)


class _LateNews:
    """Handlers that hear of a broken connection one latency late; everything else is passed on."""

    def __init__(self, handlers: RpcHandlers, latency_s: Callable[[PeerId], float]) -> None:
        self._handlers, self._latency_s = handlers, latency_s

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return self._handlers.on_offer(sender, header, payload_bytes)

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        self._handlers.on_delivery(sender, header, payload)

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        self._handlers.on_broken(sender, header, reason)

    def on_message(self, sender: PeerId, header: Header) -> Header:
        return self._handlers.on_message(sender, header)

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        asyncio.get_running_loop().call_later(self._latency_s(peer), self._handlers.on_watch_broken, peer, reason)


class EmulatedDht:
    """The `Records` of a peer in an emulated network: each lookup takes a round trip more."""

    def __init__(self, dht: Records, lookup_s: float) -> None:
        self._dht, self._lookup_s = dht, lookup_s

    async def publish_run(self, run: OwnedRun) -> bool:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.publish_run(run)

    async def publish_stage(self, record: StageRecord) -> bool:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.publish_stage(record)

    async def publish_contributions(self, pages: Sequence[ContributionRecord]) -> bool:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.publish_contributions(pages)

    async def read_stages(self, run_id: RunId, stages: Iterable[Stage]) -> list[StageRecord]:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.read_stages(run_id, stages)

    async def publish_order(self, order: SignedOrder) -> bool:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.publish_order(order)

    async def read_orders(self, terms: EntryTerms) -> list[SignedOrder]:
        await asyncio.sleep(self._lookup_s)
        return await self._dht.read_orders(terms)
