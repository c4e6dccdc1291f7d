"""Whom a peer asks in turn: a few of those whose records say that they exchange, drawn anew one by one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from random import Random

from gwtf_p2p.protocol.ids import PeerId

PARTNERS = 3
ROUNDS_WITH_ONE = 20
"""After so many rounds one partner is drawn anew."""

SHUNNED_S, UNANSWERED_S = 60.0, 10.0
"""How long somebody is left out who has said what nobody has signed, or has not answered."""


class Partners:
    """Of one peer. Two peers with the same candidates draw differently, by their `rng`."""

    def __init__(self, me: PeerId, rng: Random) -> None:
        self._me, self._rng = me, rng
        self.chosen: list[PeerId] = []
        self._candidates: Sequence[PeerId] = ()
        self._data_peers: Sequence[PeerId] = ()
        self._shunned: dict[PeerId, float] = {}
        self._rounds = 0

    def can_ask(self, candidates: Iterable[PeerId], data_peers: Iterable[PeerId]) -> None:
        """Who exchanges records, as far as their records say; and who of them plans by records."""
        able = set(candidates) - {self._me}
        self._candidates = sorted(able)
        self._data_peers = sorted(able.intersection(data_peers))
        self.chosen = [peer for peer in self.chosen if peer in able]

    def draw(self, now: float) -> None:
        """Have as many as there are to be."""
        self._shunned = {peer: until for peer, until in self._shunned.items() if until > now}
        self.chosen = [peer for peer in self.chosen if peer not in self._shunned]
        if self._rounds >= ROUNDS_WITH_ONE and self.chosen:
            self._rounds = 0
            self.chosen.pop(0)
        if len(self.chosen) < min(PARTNERS, len(self._candidates)):
            others = [peer for peer in self._candidates if peer not in self.chosen and peer not in self._shunned]
            self.chosen += self._rng.sample(others, min(PARTNERS - len(self.chosen), len(others)))

    def round_begins(self) -> None:
        self._rounds += 1

    def data_peers(self, most: int) -> list[PeerId]:
        """All of them, or so many that are drawn."""
        if len(self._data_peers) <= most:
            return list(self._data_peers)
        return self._rng.sample(self._data_peers, most)

    def shun(self, peer: PeerId, now: float, seconds: float = SHUNNED_S) -> None:
        """Leave it out for so long."""
        self._shunned[peer] = max(self._shunned.get(peer, now), now + seconds)

    def knows(self, peer: PeerId) -> bool:
        """It has a record that says that it exchanges."""
        place = bisect_left(self._candidates, peer)
        return self._candidates[place : place + 1] == [peer]

    def is_shunned(self, peer: PeerId, now: float) -> bool:
        return self._shunned.get(peer, now) > now
