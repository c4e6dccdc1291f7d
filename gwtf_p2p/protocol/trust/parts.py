"""How large a part of an average may be that another member brings.

Each member of a group sums up its own share of the average. Of every part that comes for it, the root mean
square is compared with what is usual: with that of the *other* members' parts of the same values (the upper middle one, of two
at least), with the past (`magnitudes`: the median of each member's last averages, and of these the lower middle one), and with
this member's own whole gradient. A part is refused that is `FACTOR` times as large as the largest of them. So growth in which
all take part is never refused; where two contribute, the past alone may refuse; and one that contributes alone is not judged.
What a member says that the sum of its share is, is held to this peer's own gradient and the past with more room
(`RESULT_FACTOR`), as it may hold a part that was only just taken.

Who is left out for a part that was refused, says `averages/refused_parts`. Nobody is struck: a part may be wrong by what a
third had sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, Magnitudes

RESULT_FACTOR = 100 * FACTOR
"""By so much members may differ in what they find usual."""

LEAST_OTHERS = 2
"""Parts of others to compare with; one alone could be the wrong one."""


@dataclass(frozen=True, slots=True)
class PartBound:
    """Of one attempt at one member. `usual` of the past (None: too little is known), `own` of its whole gradient (0: it has
    none), `contributors` in the group, those that are left out too."""

    usual: float | None
    own: float
    contributors: int

    def part(self, size: float, others: Sequence[float]) -> str:
        """Why a part of this root mean square is not taken, where those of the others for the same values have these; empty if
        it is."""
        there = [other for other in others if other > 0]
        known = [] if self.usual is None else [self.usual]
        if self.contributors < LEAST_OTHERS or (not known and len(there) < LEAST_OTHERS):
            return ""
        if there:
            known.append(median_high(there))
        return _beyond(size, max(*known, self.own), FACTOR)

    def result(self, size: float) -> str:
        """Why the sum of a share, as it is told, is not taken; empty if it is."""
        if self.usual is None and (self.own <= 0 or self.contributors <= LEAST_OTHERS):
            return ""
        return _beyond(size, max(self.usual or 0.0, self.own), RESULT_FACTOR)


class PartsSeen:
    """Of one attempt at the member `me`, by the places of the members in the group: what has come for its own share."""

    def __init__(self, bound: PartBound, me: int) -> None:
        self.bound, self._me = bound, me
        self._squares: dict[int, float] = {}
        self._values: dict[int, int] = {}

    def refusal(self, squares: Mapping[int, float], values: int) -> tuple[int, str] | None:
        """The largest of these parts, which are of the same `values`, and why it is not taken; None if all are. `squares` are
        the sums of each one's squares."""
        for member, squared in squares.items():
            self._squares[member] = self._squares.get(member, 0.0) + squared
            self._values[member] = self._values.get(member, 0) + values
        largest = max((member for member in squares if member != self._me), key=lambda m: squares[m], default=None)
        if largest is None:
            return None
        so_far = self.sizes
        others = [max(root_mean_square(squared, values), so_far[m]) for m, squared in squares.items() if m != largest]
        why = self.bound.part(root_mean_square(squares[largest], values), others)
        return (largest, why) if why else None

    @property
    def sizes(self) -> dict[int, float]:
        """The root mean square of all that each member has brought."""
        return {member: root_mean_square(squared, self._values[member]) for member, squared in self._squares.items()}


class PartSizes:
    """What is usual at one member, by kind of average (the rounds of a product are of different kinds)."""

    def __init__(self) -> None:
        self._magnitudes = Magnitudes()

    def bound(self, kind: str, own: float, contributors: int) -> PartBound:
        """Of an attempt that begins. One that has no gradient of its own to go by takes the upper middle one of the past: of
        two that contribute, the one that brings next to nothing must not have the other refused."""
        usual = self._magnitudes.usual(kind) if own > 0 else self._magnitudes.usual(kind, median_high)
        return PartBound(usual, own, contributors)

    def note(self, kind: str, sizes: Mapping[PeerId, float]) -> None:
        """The root mean squares of what the members have brought, whether it was taken or not."""
        for member, size in sizes.items():
            self._magnitudes.note(kind, member, size)


def root_mean_square(squares: float, values: int) -> float:
    """Of so many values whose squares have this sum."""
    return math.sqrt(squares / max(1, values))


def _beyond(size: float, usual: float, factor: float) -> str:
    if size <= factor * usual:
        return ""
    return f"its values are {size / usual:.3g} times as large as usual, expected at most {factor:.3g} times"
