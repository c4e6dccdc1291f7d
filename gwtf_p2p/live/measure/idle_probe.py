"""Links that carry no traffic are measured once, so that planners need not guess: a small push to each neighbour.

Neighbours are the online peers of the stages before and after one's own (stage 0 follows stage S). One probe at a time, at
most `PROBES_PER_LOOK` for each look at the view, of `PROBE_BYTES`; a link that real traffic has measured is never probed, one
that was probed not again before `AGAIN_S`. The receiver takes a probe of that size and throws it away.
"""

from __future__ import annotations

import asyncio
import time

from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.rpc.api import DataPlane, Header, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView

KIND = "probe"
PROBE_BYTES = 64 << 10
PROBES_PER_LOOK = 8
AGAIN_S = 300.0
LOOK_S = 2.0
DEADLINE_S = 20.0


class IdleProber:
    """Probes of one peer: `neighbours_due` decides, `run` acts until cancelled. Also the service that takes others' probes."""

    def __init__(self, rpc: DataPlane, probes: LinkProbes, stage: Stage) -> None:
        self._rpc, self._probes, self._stage = rpc, probes, stage
        self._probed_at: dict[PeerId, float] = {}
        self.view: NetworkView | None = None
        rpc.add_service(KIND, self)

    def neighbours_due(self, view: NetworkView, now: float) -> list[PeerId]:
        """Whom to probe next, sorted; nobody twice within `AGAIN_S`."""
        ring = view.stages + 1
        near = sorted({(self._stage + 1) % ring, (self._stage - 1) % ring} - {self._stage})
        known = {measured.to for measured in self._probes.measurements()}
        due = [
            peer
            for stage in near
            for peer in view.peers_of_stage(Stage(stage))
            if peer not in known and peer != self._rpc.peer_id and now - self._probed_at.get(peer, -AGAIN_S) >= AGAIN_S
        ]
        return due[:PROBES_PER_LOOK]

    async def run(self) -> None:
        while True:
            if self.view is not None:
                for peer in self.neighbours_due(self.view, time.monotonic()):
                    await self._probe(peer)
            await asyncio.sleep(LOOK_S)

    async def _probe(self, peer: PeerId) -> None:
        self._probed_at[peer] = time.monotonic()
        try:
            result = await self._rpc.push(peer, {"kind": KIND}, bytes(PROBE_BYTES), DEADLINE_S)
        except RpcFailed:
            return  # whoever routes to it will find out
        if result.accepted:
            self._probes.observe(peer, result.round_trip_s, result.sent_bytes, result.transfer_s, probe=True)

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": payload_bytes <= PROBE_BYTES}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """It has served its purpose."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was expected of it."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a probe has no calls")
