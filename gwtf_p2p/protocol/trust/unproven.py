"""Which peers of the records have shown nothing yet: they have neither said something nor been vouched for.

In a large swarm that is nearly everybody at first and nearly nobody later, and of either each peer would keep a set as large as
the swarm. So it keeps what differs from the others: who is *proven* to it, and whom it does not vouch for though it does for
the crowd that they came with. The rest follows from records and crowd, and peers of one process that have the same share it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import overload

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.remembered import Remembered

MOST_REMEMBERED = 4096
"""Proven peers; beyond that those without a record are forgotten."""

MANY_TIMES = 8
"""So many members for each that is proven: then these are few."""

NOBODY: frozenset[PeerId] = frozenset()

_BOTH = Remembered[frozenset[PeerId]](8)
_EITHER = Remembered[frozenset[PeerId]](8)
_REST = Remembered[frozenset[PeerId]](8)
_ORDERED = Remembered[tuple[PeerId, ...]](4)


class Others(Sequence[PeerId]):
    """Peers in order, without a few of them."""

    def __init__(self, ordered: tuple[PeerId, ...], without: Iterable[PeerId]) -> None:
        self._ordered = ordered
        self._gaps = sorted(place for peer in without if ordered[(place := bisect_left(ordered, peer)) : place + 1] == (peer,))

    def __len__(self) -> int:
        return len(self._ordered) - len(self._gaps)

    @overload
    def __getitem__(self, index: int) -> PeerId: ...

    @overload
    def __getitem__(self, index: slice) -> list[PeerId]: ...

    def __getitem__(self, index: int | slice) -> PeerId | list[PeerId]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        for gap in self._gaps:
            place += gap <= place
        return self._ordered[place]


class Crowd:
    """Those of `base` without a few: as many as a swarm has, of which nothing is kept but what differs from the others'."""

    def __init__(self, base: frozenset[PeerId], without: Iterable[PeerId]) -> None:
        self.base, self.without = base, base & {*without}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self.base and peer not in self.without

    @property
    def in_order(self) -> Others:
        """By id."""
        return Others(_ORDERED.of((self.base,), lambda: tuple(sorted(self.base))), self.without)


class Unproven:
    """Of peer `me`."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.proven: set[PeerId] = set()
        self.members = self._vouched = self._open = NOBODY
        self._excepted: set[PeerId] = set()
        self._all: set[PeerId] | None = set()

    def saw(self, members: frozenset[PeerId]) -> bool:
        """Of these there are records now; False when they are the same as before."""
        if members is self.members:
            return False
        self.members = members
        if len(self.proven) > MOST_REMEMBERED:
            self.proven &= members
        self._excepted &= members
        self._vouch(_both(self._vouched, members))
        return True

    def prove(self, peer: PeerId) -> None:
        """It has said something, or has answered."""
        self.proven.add(peer)
        self._excepted.discard(peer)
        if self._all is not None:
            self._all.discard(peer)

    def vouch(self, crowd: Crowd) -> None:
        """All of a crowd count as if they were proven, until their records are gone."""
        self._excepted = {peer for peer in self._excepted if peer not in crowd} | (crowd.without - self.proven - {self.me})
        self._vouch(_EITHER.of((self._vouched, crowd.base), lambda: self._vouched | crowd.base))

    def _vouch(self, vouched: frozenset[PeerId]) -> None:
        self._vouched = vouched
        self._open = _REST.of((self.members, vouched), lambda: self.members - vouched) if vouched else self.members
        self._all = None

    @property
    def at_least(self) -> int:
        """So many are unproven; that is found without looking at each."""
        return len(self._all) if self._all is not None else len(self._open) - len(self.proven) - 1

    @property
    def all(self) -> set[PeerId]:
        """Each of them. Not to be changed."""
        if self._all is None:
            self._all = {*(self._open - self.proven)} | (self._excepted & self.members)
            self._all.discard(self.me)
        return self._all

    @property
    def few_others(self) -> set[PeerId] | None:
        """Who is proven, and this peer itself, while that is nearly nobody of a large swarm and nobody is vouched for; else
        None. Who has no record may be among them."""
        if self._all is not None or self._vouched or MANY_TIMES * len(self.proven) > len(self.members):
            return None
        return {*self.proven, self.me}

    def __contains__(self, peer: PeerId) -> bool:
        unproven = peer != self.me and peer not in self.proven
        return unproven and (peer in self._open or (peer in self._excepted and peer in self.members))

    def without(self, others: Iterable[PeerId]) -> Crowd:
        """All of them but these."""
        return Crowd(self._open | self._excepted if self._excepted else self._open, {*self.proven, *others, self.me})


def _both(some: frozenset[PeerId], others: frozenset[PeerId]) -> frozenset[PeerId]:
    """The very same ones as before, while all of them are among the others."""

    def found() -> frozenset[PeerId]:
        both = some & others
        return both if len(both) < len(some) else some

    return _BOTH.of((some, others), found) if some else NOBODY
