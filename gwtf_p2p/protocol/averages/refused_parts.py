"""Who is left out of the next attempt for a part of an average that was refused (`trust/parts`).

Whoever refuses a part, or what is told as the sum of a share, names its sender. The attempt ends, and the coordinator leaves
the sender out of the next one: it brings nothing and sums up nothing, but gets the average. One accuser alone may lie, so it is
left out as well, unless nobody would be left; a second one clears it. Of one that accuses several, and is joined by nobody,
only itself is left out. What one says that two have accused counts no more. Where members accuse each other until nobody is
left, the step is skipped. With the iteration it is all forgotten.

An accuser that brings nothing would lose nothing by a lie: alone it is not believed, and is no participant of the next attempt
(`dropped`). It has to catch up, and whoever it has accused sends its parts to the others, who judge for themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId, Stage


@dataclass(frozen=True, slots=True)
class LeftOut:
    """`peers` bring nothing to the next attempt, `dropped` (which would bring nothing) have no part in it; `skips_for` are
    those that have accused each other until nobody was left."""

    peers: frozenset[PeerId] = frozenset()
    skips_for: frozenset[PeerId] = frozenset()
    dropped: frozenset[PeerId] = frozenset()


@dataclass(slots=True)
class RefusedParts:
    """Of one coordinator and iteration: who has refused whose part, by stage."""

    _by_accused: dict[tuple[Stage, PeerId], set[PeerId]] = field(default_factory=dict)

    def refused(self, stage: Stage, accuser: PeerId, accused: PeerId) -> None:
        """A part, or the sum of a share."""
        self._by_accused.setdefault((stage, accused), set()).add(accuser)

    def forget(self, peer: PeerId) -> None:
        """It is lost, or begins anew: what it said, and what was said of it, is of no use any more."""
        kept = {(stage, of): said - {peer} for (stage, of), said in self._by_accused.items() if of != peer}
        self._by_accused = {place: said for place, said in kept.items() if said}

    def clear(self) -> None:
        """The iteration is over."""
        self._by_accused.clear()

    def left_out(self, contributors: Mapping[Stage, Collection[PeerId]], me: PeerId) -> LeftOut:
        """Of an attempt to which these contribute, and which this peer leads."""
        found = [self._of_stage(stage, frozenset(peers), me) for stage, peers in sorted(contributors.items())]
        return LeftOut(
            frozenset(peer for each in found for peer in each.peers),
            frozenset(peer for each in found for peer in each.skips_for),
            frozenset(peer for each in found for peer in each.dropped),
        )

    def _of_stage(self, stage: Stage, contributors: frozenset[PeerId], me: PeerId) -> LeftOut:
        said = {of: accusers for (at, of), accusers in self._by_accused.items() if at == stage}
        confirmed = {of for of, accusers in said.items() if len(accusers) > 1}
        alone = {of: next(iter(accusers)) for of, accusers in said.items() if of not in confirmed and not accusers <= confirmed}
        dropped = frozenset(accuser for accuser in alone.values() if accuser not in contributors and accuser != me)
        alone = {of: accuser for of, accuser in alone.items() if accuser not in dropped}
        liars = {accuser for accuser in alone.values() if list(alone.values()).count(accuser) > 1}
        accused = confirmed | {of for of, accuser in alone.items() if accuser not in liars}
        both = frozenset(accused | set(alone.values()) - ({me} - contributors))
        if contributors - both or not both:
            return LeftOut(both, dropped=dropped)
        if len(accused) == 1 and not liars and contributors - accused:
            return LeftOut(frozenset(accused), dropped=dropped)
        return LeftOut(skips_for=both, dropped=dropped)
