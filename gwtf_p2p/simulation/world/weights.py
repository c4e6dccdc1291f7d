"""Which versions of its weights every simulated peer has, and how a peer gets a version that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.trust.state_access import StateAccess, WhyNoState
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.simulation.lines.downloads import Downloads, Request
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.copies import Copies
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer

KEPT_VERSIONS = 4
"""Checkpoints that a peer keeps, what it works with included."""


class Weights:
    """Of all peers of a world; `sizes` say what one download carries, `has_published` says who has a record. `copies` differ in
    between where a run averages them now and then: then a download is of one donor's."""

    def __init__(self, population: Population, sizes: Sizes, has_published: Callable[[PeerId], bool]) -> None:
        self._population, self._sizes, self._has_published = population, sizes, has_published
        self.copies = Copies(sizes.sync)
        self._downloads = Downloads(population.links)

    @property
    def bytes_sent(self) -> int:
        """Of all downloads."""
        return self._downloads.bytes_sent

    def state_of(self, peer_id: PeerId, iteration: int) -> str:
        """The digest of what its average of this iteration is for; '' where it is not all here."""
        peer = self._population.peers[peer_id]
        progress = peer.machine.participant.progress
        is_here = progress.has_state and progress.weights == iteration
        return self._digest(peer, iteration) if is_here else ""

    def _digest(self, peer: SimulatedPeer, version: int) -> str:
        """'' where others of its stage may have another copy."""
        return self.copies.of(peer, version) if self.copies.sync.is_whole(version) else ""

    def step(self, peer: SimulatedPeer, step: ef.Step) -> None:
        """An optimizer step, which takes no time: a version more."""
        iteration = step.iteration
        self.copies.step(peer, step)
        peer.contributions[iteration + 1] = peer.contributions.get(iteration, Contributions()).plus(step.receipts)
        self._keep(peer, [*peer.kept, iteration + 1])
        self._population.kernel.after(0.0, lambda: self._population.feed(peer, ev.Stepped(iteration)))

    def download(self, peer: SimulatedPeer, download: ef.Download) -> None:
        """From an own checkpoint if that is the right one, which takes no time; else from all donors at once, the weights first
        where they are wanted first. What is rebuilt takes the states of the stage below and of the one above, one after the
        other."""
        version, sizes = download.version, self._sizes
        own = download.own and version in peer.kept
        first_bytes = sizes.weights_bytes if download.weights_first else 0
        rest_bytes = 0 if own else sizes.state_bytes - first_bytes

        def left_on_disk() -> list[int]:
            """Of this epoch, which the peer is in from now on."""
            left = [v for v in peer.kept if v < version] if own or download.epoch == peer.epoch else []
            peer.epoch = download.epoch
            return left

        def ended(whole: bool) -> None:
            if not whole:
                self._population.feed(peer, ev.DownloadFailed(f"nobody has version {version}"))
                return
            earlier = left_on_disk()
            rebuild = download.rebuild
            rebuilt = rebuild.stages if rebuild is not None and peer.machine.ctx.stage == DATA_STAGE else ()
            peer.contributions[version] = sums.with_rebuilt(rebuilt, version) if rebuilt else sums
            if not own and not first_bytes:
                self.copies.take(peer, version, copy if rebuild is None else None)
            self._keep(peer, [*earlier, version])
            self._population.feed(peer, ev.Downloaded(version, self._digest(peer, version)))

        def weights_ended(whole: bool) -> None:
            if not whole:
                ended(whole)
                return
            peer.kept = left_on_disk()
            self.copies.take(peer, version, copy)
            self._fetch(peer, version, [donors], rest_bytes, ended)
            self._population.feed(peer, ev.WeightsDownloaded(version))

        copy, donors = (None, (peer.id,)) if own else self._of_one_copy(download.donors, version, peer.id)
        sums = self._contributions(donors, version)
        neighbours = (download.rebuild.below, download.rebuild.above) if download.rebuild is not None else ()
        if first_bytes and not own:
            self._fetch(peer, version, [donors], first_bytes, weights_ended)
        else:
            self._fetch(peer, version, [each for each in neighbours if each] or [donors], rest_bytes, ended)

    def _of_one_copy(self, donors: tuple[PeerId, ...], version: int, to: PeerId) -> tuple[str | None, tuple[PeerId, ...]]:
        """What the first that can give it has of this version, and those whose states are equal to that; None, and all, where
        nobody can."""
        peers = self._population.peers
        first = next((d for d in donors if self._can_give(d, version, to)), None)
        if first is None:
            return None, donors
        wanted = self.copies.of(peers[first], version)
        return wanted, tuple(donor for donor in donors if self.copies.of(peers[donor], version) == wanted)

    def _fetch(
        self,
        peer: SimulatedPeer,
        version: int,
        groups: Sequence[tuple[PeerId, ...]],
        size: int,
        ended: Callable[[bool], None],
    ) -> None:
        """A state of each group of donors."""

        def one_ended(whole: bool) -> None:
            if whole and len(groups) > 1:
                self._fetch(peer, version, groups[1:], size, ended)
            else:
                ended(whole)

        self._downloads.start(Request(peer.id, size, groups[0], lambda d: self._can_give(d, version, peer.id)), one_ended)

    def peer_gone(self, peer: PeerId) -> None:
        """It downloads no more, and those who download from it turn to others."""
        self._downloads.stop(peer)
        self._downloads.donor_gone(peer)

    def partitioned(self) -> None:
        """Those who download from the other side turn to others."""
        self._downloads.partitioned()

    def donor_silent(self, donor: PeerId) -> None:
        """Those who download from a frozen peer turn to another."""
        self._downloads.donor_gone(donor)

    def _keep(self, peer: SimulatedPeer, versions: list[int]) -> None:
        """The last is what it works with, the others are on its disk."""
        peer.kept = [*self.copies.on_disk(versions[:-1])[1 - KEPT_VERSIONS :], *versions[-1:]]
        peer.contributions = {version: sums for version, sums in peer.contributions.items() if version in peer.kept}
        peer.copies = {version: name for version, name in peer.copies.items() if version in peer.kept}
        self._population.kernel.after(0.0, lambda: self._population.feed(peer, ev.Kept(self._on_disk(peer))))

    def _on_disk(self, peer: SimulatedPeer) -> tuple[int, ...]:
        return tuple(self.copies.on_disk(peer.kept))

    def _contributions(self, donors: Iterable[PeerId], version: int) -> Contributions:
        """Part of the state of a version, at whoever has it."""
        found = (self._population.peers[donor].contributions.get(version) for donor in donors)
        return next((sums for sums in found if sums is not None), Contributions())

    def _can_give(self, donor: PeerId, version: int, to: PeerId) -> bool:
        """It is there, has this version, and gives it to this peer. A record that it has not seen yet it looks up."""
        peer = self._population.peers[donor]
        is_apart = self._population.links.partition.separates(donor, to)
        if is_apart or not peer.alive or peer.frozen or version not in peer.kept:
            return False
        refusal = StateAccess(peer.machine.gate).refusal(to, peer.machine.ctx.stage) if to != donor else None
        return refusal is None or (refusal.why is WhyNoState.NO_RECORD and self._has_published(to))
