"""Carries out the probes of links without traffic that `protocol/view/idle_links` chooses: small pushes to neighbours.

One probe at a time, but for those of a line probe. The receiver takes a probe and throws it away, or does not take it while it
receives something else; one of an older release takes `FIRST_BYTES` and no more, whatever it receives, and its links keep the
bandwidth that they had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.rpc.api import DataPlane, Header, PushResult, RpcFailed
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.idle_links import LOOK_S, IdleLinks, Probe, Spare, takes
from gwtf_p2p.protocol.view.network_view import NetworkView

KIND = "probe"
REST_LOOK_S = 6.0
"""Between two looks, when nothing was due at the last."""

PUT_OFF_LOOK_S = 0.5
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one peer: is anything under way to anybody, and from anybody to it?"""

    is_sending: Callable[[], bool]
    is_receiving: Callable[[], bool]


class IdleProber:
    """Probes of one peer: `run` acts until cancelled. Also the service that takes others' probes. `quota_bytes` tells what is
    left of the owner's quota."""

    def __init__(self, rpc: DataPlane, probes: LinkProbes, stage: Stage, traffic: Traffic) -> None:
        self._rpc, self._probes, self._traffic = rpc, probes, traffic
        self._links = IdleLinks(rpc.peer_id, stage)
        self.quota_bytes: Callable[[], float] = lambda: inf
        self.view: NetworkView | None = None
        rpc.add_service(KIND, self)

    async def run(self) -> None:
        while True:
            is_busy = self.view is None or await self.look(self.view, time.monotonic())
            await asyncio.sleep(PUT_OFF_LOOK_S if self._links.has_put_off else LOOK_S if is_busy else REST_LOOK_S)

    async def look(self, view: NetworkView, now: float) -> bool:
        """Once: send what is due; whether anything was."""
        due = self._links.due(view, self._probes.ages(), now, self._spare())
        for probe in due:
            await self._send(probe, now)
        if due or self._links.line_rests(now):
            return bool(due)
        links = {link.to: link for link in self._probes.measurements()}
        carries = {peer: link.bandwidth_bytes_per_s for peer, link in links.items()}
        together = self._links.line_due(view, carries, self._probes.line_bytes_per_s, now, self._spare())
        if together:
            round_trips_s = [links[probe.to].round_trip_s for probe in together]
            self._links.line_sent(await self._fill(together, round_trips_s), carries, now)
        return bool(together)

    def _spare(self) -> Spare:
        return Spare(self._traffic.is_sending(), self.quota_bytes())

    async def _send(self, probe: Probe, now: float) -> None:
        if probe.needs_quiet and self._traffic.is_sending():
            self._links.put_off(probe)
            return
        self._links.sent(probe, now)
        result = await self._push(probe)
        if result is not None and not result.accepted and probe.needs_quiet:
            self._links.put_off(probe)
            return
        told_s = self._probes.round_trip_s(probe.to)
        if result is not None and result.accepted:
            self._probes.observe(probe.to, result.round_trip_s, result.sent_bytes, result.transfer_s, probe=True)
        is_heard = result is not None and result.accepted and told_s > 0
        self._links.ended(probe, as_told=is_heard and self._probes.round_trip_s(probe.to) == told_s)

    async def _fill(self, together: Sequence[Probe], round_trips_s: Sequence[float]) -> bool:
        """Send them so that their payloads, which wait for a verdict, begin together; whether two or more were taken."""
        longest_s = max(round_trips_s)

        async def timed(probe: Probe, round_trip_s: float) -> tuple[PushResult | None, float]:
            await asyncio.sleep(longest_s - round_trip_s)
            return await self._push(probe), time.monotonic() - round_trip_s / 2

        ended = await asyncio.gather(*(timed(probe, s) for probe, s in zip(together, round_trips_s, strict=True)))
        taken = [(result, end) for result, end in ended if result is not None and result.accepted]
        if len(taken) > 1:
            seconds = max(end for _, end in taken) - min(end - result.transfer_s for result, end in taken)
            self._probes.carried_together(sum(result.sent_bytes for result, _ in taken), seconds)
        return len(taken) > 1

    async def _push(self, probe: Probe) -> PushResult | None:
        """None when it did not get through: whoever routes to that peer will find out."""
        header = {"kind": KIND, "insists": probe.insists}
        try:
            return await self._rpc.push(probe.to, header, bytes(probe.size), DEADLINE_S, eager=False)
        except RpcFailed:
            return None

    # the transport's side

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": takes(payload_bytes, header.get("insists") is True, self._traffic.is_receiving())}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        """It has served its purpose."""

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was expected of it."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("a probe has no calls")
