"""Who averages with whom, where a stage has many peers: in rows, and across them.

Few members average all with all: each sums up a share of the values and tells all others. More than `most` are dealt out to
rows of at most `most`. A row cuts the values into lanes, one for each of its *owners*; its members send the owners what they
bring, and an owner has the row's mean of its lane. The owners of a lane, one of each row, average that among themselves, in
the same way (all with all, or in rows again), and tell their rows. So each value is summed up once in each row and once more
across the rows, in the order of the members; a member sends and receives about twice the values, as all with all, but in a
number of messages that grows with the logarithm of the members and not with their number.

As rows may differ by one, the longer ones have a *guest*: it brings its own and gets the average, and owns no lane. So do those
that are left out, which bring nothing.

What is told of a lane travels on in the bytes of whoever has summed it up: all members read the same ones, in any format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId

MOST_ALL_WITH_ALL = 8
"""So many send 14 messages each; 9 send 8 in three rows, where all with all they would send 16."""

Row = tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """`rows` of members; the first `lanes` of each are its owners."""

    rows: tuple[Row, ...]
    lanes: int

    def row_of(self, member: PeerId) -> Row:
        """The one that it is in."""
        return next(row for row in self.rows if member in row)

    def column(self, lane: int) -> tuple[PeerId, ...]:
        """The lane's owners, in the order of the rows."""
        return tuple(row[lane] for row in self.rows)

    def lane_of(self, member: PeerId) -> int | None:
        """The one that it owns."""
        place = self.row_of(member).index(member)
        return place if place < self.lanes else None

    def weights_across(self, weights: Mapping[PeerId, float]) -> tuple[float, ...]:
        """Of the rows: what their members bring, together."""
        return tuple(sum(weights[member] for member in row) for row in self.rows)


def rows_of(members: Sequence[PeerId], most: int, left_out: Collection[PeerId] = ()) -> Rows | None:
    """Of a group in which at most so many average all with all; None where these do. 0 and 1: any number does."""
    able = [member for member in members if member not in left_out]
    if most < 2 or len(able) <= most:
        return None
    count = -(-len(able) // _width(len(able), most))
    each, longer = divmod(len(able), count)
    rows, at = [], 0
    for number in range(count):
        end = at + each + (number < longer)
        rows.append(able[at:end])
        at = end
    for number, member in enumerate(member for member in members if member in left_out):
        rows[-1 - number % count].append(member)
    return Rows(tuple(map(tuple, rows)), each)


def _width(members: int, most: int) -> int:
    """Of the rows: as even as can be over as few levels as rows of `most` need."""
    levels = 1
    while most**levels < members:
        levels += 1
    width = 2
    while width**levels < members:
        width += 1
    return width
