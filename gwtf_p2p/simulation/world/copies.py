"""What the weights of simulated peers have come from, in place of the weights: equal names stand for equal weights.

A step of the group's average makes one name of the name before and the attempt; a local step (`protocol/replica_sync`) has the
peer's own name in it, if it had a microbatch; an average of copies forgets what they were. So invariants can tell whether
copies of a stage that ought to be equal are.
"""

from __future__ import annotations

from hashlib import blake2b

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.simulation.world.population import SimulatedPeer

FIRST = "first weights"


class Copies:
    """Of all peers of a world. It hears of every average that a peer takes part in."""

    def __init__(self, sync: ReplicaSync) -> None:
        self.sync = sync
        self._averages: dict[PeerId, dict[tuple[int, int], Prepare]] = {}

    def averages(self, peer: PeerId, prepare: Prepare) -> None:
        """This peer takes part in it."""
        self._averages.setdefault(peer, {})[prepare.iteration, prepare.attempt] = prepare

    def step(self, peer: SimulatedPeer, step: ef.Step) -> None:
        """The weights are one version further."""
        iteration, before = step.iteration, self.of(peer, step.iteration)
        averages = self._averages.get(peer.id, {})
        prepare = averages.get((iteration, step.attempt))
        self._averages[peer.id] = {key: each for key, each in averages.items() if key[0] > iteration}
        if step.gradient_norm < 0 or prepare is None:
            after = before
        elif self.sync.averages_copies(iteration):
            after = _named("copies", prepare.key)
        elif not self.sync.is_local(iteration):
            after = _named(before, prepare.key)
        else:
            after = _named(before, prepare.key, peer.id) if prepare.share_of(peer.id) else before
        peer.copies[iteration + 1] = after

    def of(self, peer: SimulatedPeer, version: int) -> str:
        """What this peer's weights of that version have come from."""
        return peer.copies.get(version, FIRST)

    def take(self, peer: SimulatedPeer, version: int, copy: str | None) -> None:
        """They were downloaded from peers that had this copy, or (None) made of its neighbours' by one rule for all."""
        rebuilt = _named("rebuilt", str(peer.epoch), str(version), str(peer.machine.ctx.stage))
        peer.copies[version] = copy if copy is not None else rebuilt

    def on_disk(self, versions: list[int]) -> list[int]:
        """Those of which there are checkpoints."""
        return [version for version in versions if self.sync.is_whole(version)]


def alike(peer: SimulatedPeer) -> tuple[Stage, int, int]:
    """Peers of which this is the same have equal copies, if their version is whole."""
    return peer.machine.ctx.stage, peer.epoch, peer.machine.participant.weights


def _named(*what: str) -> str:
    return blake2b("/".join(what).encode(), digest_size=8).hexdigest()
