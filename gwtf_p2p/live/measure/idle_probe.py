"""Carries out the probes of links without traffic that `protocol/view/idle_links` chooses: small pushes to neighbours.

One probe at a time. The receiver takes a probe and throws it away; one of an older release takes `FIRST_BYTES` and no more, and
its links keep the bandwidth that they had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.idle_links import BANDWIDTH_BYTES, IdleLinks, Probe, Spare
from gwtf_p2p.protocol.view.network_view import NetworkView

KIND = "probe"
LOOK_S = 2.0
DEADLINE_S = 20.0


class IdleProber:
    """Probes of one peer: `run` acts until cancelled. Also the service that takes others' probes. `is_sending` tells whether
    anything is under way to anybody, `quota_bytes` what is left of the owner's quota."""

    def __init__(self, rpc: DataPlane, probes: LinkProbes, stage: Stage, is_sending: Callable[[], bool]) -> None:
        self._rpc, self._probes, self._is_sending = rpc, probes, is_sending
        self._links = IdleLinks(rpc.peer_id, stage)
        self.quota_bytes: Callable[[], float] = lambda: inf
        self.view: NetworkView | None = None
        rpc.add_service(KIND, self)

    async def run(self) -> None:
        while True:
            if self.view is not None:
                await self.look(self.view, time.monotonic())
            await asyncio.sleep(LOOK_S)

    async def look(self, view: NetworkView, now: float) -> None:
        """Once: send what is due."""
        spare = Spare(self._is_sending(), self.quota_bytes())
        for probe in self._links.due(view, self._probes.ages(), now, spare):
            self._links.sent(probe, now)
            await self._send(probe)

    async def _send(self, probe: Probe) -> None:
        try:
            result = await self._rpc.push(probe.to, {"kind": KIND}, bytes(probe.size), DEADLINE_S)
        except RpcFailed:
            return  # whoever routes to it will find out
        if result.accepted:
            self._probes.observe(probe.to, result.round_trip_s, result.sent_bytes, result.transfer_s, probe=True)

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": payload_bytes <= BANDWIDTH_BYTES}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """It has served its purpose."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was expected of it."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a probe has no calls")
