"""A network that is partitioned for a while: peers on both sides live and compute, and nothing gets across."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId


@dataclass(slots=True)
class Partition:
    """`side`: who cannot reach the others now, and they not them; nobody while the network is whole. `has_been`: it was
    partitioned at some time."""

    side: frozenset[PeerId] = frozenset()
    has_been: bool = False

    def begin(self, side: frozenset[PeerId]) -> None:
        """From now on these are cut off from all others."""
        self.side, self.has_been = side, True

    def end(self) -> None:
        """Everybody can reach everybody again."""
        self.side = frozenset()

    def separates(self, one: PeerId, other: PeerId) -> bool:
        """These two cannot reach each other now."""
        return (one in self.side) != (other in self.side)
