"""Simulated peers probe links without traffic, as live ones do: `protocol/view/idle_links` chooses which, and when.

Whoever starts has measured nothing yet, so it begins with its neighbours, a few at each look. A probe takes the lines that it
goes over, and is counted. What links carry does not change in a simulation, and is what peers publish from their start on
(`build`): so a probe finds nothing new. One that is under way to or from a peer that dies is stopped. In swarms of more than
`SMALL` peers none is simulated: first probes, one from each peer to each neighbour, would be most of all transfers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.exchange.pace import SMALL
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.idle_links import FIRST_BYTES, LOOK_S, IdleLinks, LinkAge, Probe, Spare
from gwtf_p2p.simulation.lines.links import Transfer
from gwtf_p2p.simulation.swarm.build import Swarm
from gwtf_p2p.simulation.world.population import SimulatedPeer


@dataclass(slots=True)
class _Links:
    """Of one life of a peer: when each link was used, and its bandwidth seen, last."""

    idle: IdleLinks
    machine: object
    used_at: dict[PeerId, float] = field(default_factory=dict)
    bandwidth_at: dict[PeerId, float] = field(default_factory=dict)
    under_way: dict[PeerId, Transfer] = field(default_factory=dict)

    def ages(self, now: float) -> dict[PeerId, LinkAge]:
        return {peer: LinkAge(now - self.used_at[peer], now - at) for peer, at in self.bandwidth_at.items()}

    def used(self, to: PeerId, size: int, now: float) -> None:
        """So many bytes have arrived there."""
        self.used_at[to] = now
        if size >= FIRST_BYTES:
            self.bandwidth_at[to] = now


@dataclass
class IdleProbes:
    """Of all peers of a swarm. `bytes_sent`: of the probes that have begun; those of one that was stopped count as far as it
    had come."""

    swarm: Swarm
    bytes_sent: int = 0
    _of: dict[PeerId, _Links] = field(default_factory=dict)

    def start(self) -> None:
        """From now on, if the swarm is small."""
        if len(self.swarm.world.peers) <= SMALL:
            self.swarm.world.kernel.after(LOOK_S, self._look)

    def heard(self, event: ev.Event, receiver: PeerId, now: float) -> None:
        """A tensor that has come tells its sender what the link carries."""
        if isinstance(event, ev.Delivered) and event.sender in self._of:
            self._of[event.sender].used(receiver, self.swarm.world.pushes.size_of(event.message), now)

    def gone(self, peer: PeerId) -> None:
        """Its process has ended, or stands still."""
        for own, links in self._of.items():
            for to in [to for to in links.under_way if peer in (own, to)]:
                self.bytes_sent -= self.swarm.links.stop(links.under_way.pop(to))

    def _look(self) -> None:
        sending = self.swarm.world.pushes.senders()
        for peer in list(self.swarm.world.peers.values()):
            if peer.alive and not peer.frozen:
                self._look_of(peer, peer.id in sending)
        self.swarm.world.kernel.after(LOOK_S, self._look)

    def _look_of(self, peer: SimulatedPeer, is_busy: bool) -> None:
        view, now, links = peer.machine.ctx.view, self.swarm.world.kernel.now, self._of.get(peer.id)
        if links is None or links.machine is not peer.machine:
            links = self._of[peer.id] = _Links(IdleLinks(peer.id, peer.machine.ctx.stage), peer.machine)
        if view is None:
            return
        for probe in links.idle.due(view, links.ages(now), now, Spare(is_busy)):
            links.idle.sent(probe, now)
            other = self.swarm.world.peers[probe.to]
            if other.alive and not other.frozen and probe.to not in links.under_way:
                self._send(peer.id, links, probe)

    def _send(self, sender: PeerId, links: _Links, probe: Probe) -> None:
        lines, kernel, to = self.swarm.links, self.swarm.world.kernel, probe.to

        def arrived() -> None:
            links.used(to, probe.size, kernel.now)

        def sent() -> None:
            del links.under_way[to]
            kernel.after(lines.latency_s(sender, to), arrived)

        self.bytes_sent += probe.size
        links.under_way[to] = lines.start(sender, to, probe.size, sent)
