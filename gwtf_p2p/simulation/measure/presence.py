"""Which stage peers an iteration could count on, as one knows who knows the future: for `bounds.clairvoyant_s`.

Whoever was there when the iteration began, or came back in it, counts as there from its begin; whoever crashed in it and did
not come back counts as away: with exact recovery nothing that it has done survives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId


@dataclass
class Presence:
    """`up` tells who is up now. `of[i]`: who could be counted on in iteration i."""

    up: Callable[[], Iterable[PeerId]]
    of: list[frozenset[PeerId]] = field(default_factory=list)
    _there: set[PeerId] = field(default_factory=set)

    def begin(self) -> None:
        """The run begins."""
        self._there = set(self.up())

    def crashed(self, peer: PeerId) -> None:
        self._there.discard(peer)

    def came_back(self, peer: PeerId) -> None:
        self._there.add(peer)

    def iteration_ended(self) -> None:
        self.of.append(frozenset(self._there))
        self._there = set(self.up())
