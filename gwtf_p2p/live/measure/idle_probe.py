"""Links that carry no traffic are measured, so that planners need not guess: a small push to each neighbour.

Neighbours are the online peers of the stages before and after one's own (stage 0 follows stage S). One probe at a time, at
most `PROBES_PER_LOOK` for each look at the view, and no link twice within `AGAIN_S`. The first is of `PROBE_BYTES`; a link that
has been measured and was not used since has its round trip measured anew, with `AGAIN_BYTES`. Otherwise a link that was slow
for once, as while its other end started, would be slow for good, as nobody uses it. The receiver takes a probe and throws it
away.
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
AGAIN_BYTES = 256
AGAIN_S = 60.0
LOOK_S = 2.0
DEADLINE_S = 20.0


class IdleProber:
    """Probes of one peer: `neighbours_due` decides, `run` acts until cancelled. Also the service that takes others' probes."""

    def __init__(self, rpc: DataPlane, probes: LinkProbes, stage: Stage) -> None:
        self._rpc, self._probes, self._stage = rpc, probes, stage
        self._probed_at: dict[PeerId, float] = {}
        self.view: NetworkView | None = None
        rpc.add_service(KIND, self)

    def neighbours_due(self, view: NetworkView, now: float) -> list[tuple[PeerId, int]]:
        """Whom to probe next with how many bytes, in the order of stages and ids; nobody twice within `AGAIN_S`."""
        ring = view.stages + 1
        near = sorted({(self._stage + 1) % ring, (self._stage - 1) % ring} - {self._stage})
        age_s = {measured.to: measured.age_s for measured in self._probes.measurements()}
        neighbours = [peer for stage in near for peer in view.peers_of_stage(Stage(stage)) if peer != self._rpc.peer_id]
        rested = [peer for peer in neighbours if now - self._probed_at.get(peer, -AGAIN_S) >= AGAIN_S]
        due = [(peer, AGAIN_BYTES if peer in age_s else PROBE_BYTES) for peer in rested if age_s.get(peer, AGAIN_S) >= AGAIN_S]
        return due[:PROBES_PER_LOOK]

    async def run(self) -> None:
        while True:
            if self.view is not None:
                for peer, size in self.neighbours_due(self.view, time.monotonic()):
                    await self._probe(peer, size)
            await asyncio.sleep(LOOK_S)

    async def _probe(self, peer: PeerId, size: int) -> None:
        self._probed_at[peer] = time.monotonic()
        try:
            result = await self._rpc.push(peer, {"kind": KIND}, bytes(size), DEADLINE_S)
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
