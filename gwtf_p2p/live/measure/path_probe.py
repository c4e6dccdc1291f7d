"""A megabyte or two over every new path, so that its cost is known before the first microbatch needs it.

A ping says nothing about a path: circuit relays and home lines differ in what they carry, not in their round trips. So
whenever the path to a peer is another one than before, and nothing else is under way to that peer, `PROBE_BYTES` are pushed to
it and thrown away there. One probe at a time, and one per peer in `LEAST_PAUSE_S`: a path that changes again before is probed
when the pause is over, if nothing has measured it by then. None through a circuit that has few bytes to give. Real traffic
measures the link from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.rpc.api import Header, RpcFailed
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import PathType

PROBE = "megabytes"
PROBE_BYTES = 2_000_000
LEAST_BUDGET_BYTES = 64 << 20
LEAST_PAUSE_S = 60.0
DEADLINE_S = 30.0
IDLE_LOOK_S = 0.2
IDLE_WAIT_S = 20.0


class LinkProbe:
    """Of one peer. `run` probes what `path_changed` asks for; `on_report` hears of each figure."""

    def __init__(self, rpc: Rpc, probes: LinkProbes, on_report: Callable[[dict[str, Any]], None]) -> None:
        self._rpc, self._probes, self._on_report = rpc, probes, on_report
        self._due: asyncio.Queue[tuple[PeerId, PathType]] = asyncio.Queue()
        self._probed_at: dict[PeerId, float] = {}
        self._later: dict[PeerId, asyncio.TimerHandle] = {}
        rpc.add_service(PROBE, self)

    def path_changed(self, peer: PeerId, path: PathType, circuit_bytes: int) -> None:
        """`circuit_bytes`: what a circuit to this peer carries in all, 0 without a limit."""
        if path is not PathType.RELAYED or not circuit_bytes or circuit_bytes >= LEAST_BUDGET_BYTES:
            self._due.put_nowait((peer, path))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                peer, path = await self._due.get()
                if waiting := self._later.pop(peer, None):
                    waiting.cancel()  # for a path that has changed again
                    if self._is_measured(peer):
                        continue
                pause_s = self._probed_at.get(peer, -LEAST_PAUSE_S) + LEAST_PAUSE_S - loop.time()
                if pause_s > 0:
                    self._later[peer] = loop.call_later(pause_s, self._due.put_nowait, (peer, path))
                elif await self._is_idle(peer):
                    self._probed_at[peer] = loop.time()
                    await self._probe(peer, path)
        finally:
            for waiting in self._later.values():
                waiting.cancel()

    def _is_measured(self, peer: PeerId) -> bool:
        return any(link.to == peer for link in self._probes.measurements())

    async def _is_idle(self, peer: PeerId) -> bool:
        for _ in range(round(IDLE_WAIT_S / IDLE_LOOK_S)):
            if self._rpc.is_idle(peer):
                return True
            await asyncio.sleep(IDLE_LOOK_S)
        return False

    async def _probe(self, peer: PeerId, path: PathType) -> None:
        try:
            result = await self._rpc.push(peer, {"kind": PROBE}, bytes(PROBE_BYTES), DEADLINE_S)
        except RpcFailed:
            return  # whoever needs this link will find out, and report it
        if result.accepted:
            self._probes.observe(peer, result.round_trip_s, result.sent_bytes, result.transfer_s, probe=True)
            megabytes_per_s = round(result.sent_bytes / result.transfer_s / 1e6, 2)
            self._on_report({"name": "link", "peer": peer, "path": path.value, "megabytes_per_s": megabytes_per_s})

    # ---- the other end

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": payload_bytes <= PROBE_BYTES}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None: ...

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None: ...

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a probe has a payload")
