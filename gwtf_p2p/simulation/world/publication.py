"""How the records of simulated peers get into the directory, and when peers see those of the others."""

from __future__ import annotations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer
from gwtf_p2p.simulation.world.signatures import key_of


class Publication:
    """Of all peers of a world; each publishes again after `period_s`."""

    def __init__(self, population: Population, directory: Directory, period_s: float) -> None:
        self._population, self._directory, self._period_s = population, directory, period_s
        self._shown_at = -1.0
        self._beyond: Directory | None = None

    def keep_publishing(self, peer: SimulatedPeer) -> None:
        """Now and every period until it dies; while it is frozen nothing is published."""
        if not peer.alive:
            return
        if not peer.frozen:
            self.publish(peer)
        self._population.kernel.after(self._period_s, lambda: self.keep_publishing(peer))

    def publish(self, peer: SimulatedPeer) -> None:
        """A new record of this peer; all look when it becomes visible."""
        kernel = self._population.kernel
        peer.sequence += 1
        run_id, line_bytes_per_s = RunId("simulation"), peer.line_bytes_per_s
        around = OwnMeasurements(run_id, signing_key=key_of(peer.id), links=peer.links, line_bytes_per_s=line_bytes_per_s)
        self._of(peer).publish(stage_record(peer.machine, around, peer.sequence), kernel.now)
        visible_at = self._directory.visible_at(kernel.now)
        if visible_at > self._shown_at:
            self._shown_at = visible_at
            kernel.at(visible_at, self._show_all)

    def show(self, peer: SimulatedPeer) -> None:
        """Let a peer see the records that are visible now."""
        view = self._of(peer).view(self._population.kernel.now)
        if view is not peer.machine.ctx.view and peer.alive and not peer.frozen:
            self._population.feed(peer, ev.ViewChanged(view))

    def partitioned(self) -> None:
        """Those that are cut off see, from now on, no records but each other's, and others none of theirs."""
        self._beyond = self._directory.parted()

    def reunited(self) -> None:
        """Everybody sees everybody's."""
        if self._beyond is not None:
            self._directory.take_over(self._beyond)
            self._beyond = None
        self._show_all()

    def _of(self, peer: SimulatedPeer) -> Directory:
        is_beyond = self._beyond is not None and peer.id in self._population.links.partition.side
        return self._beyond if is_beyond and self._beyond is not None else self._directory

    def _show_all(self) -> None:
        for peer in list(self._population.peers.values()):
            self.show(peer)
