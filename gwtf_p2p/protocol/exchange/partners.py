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
        self._silent: dict[PeerId, float] = {}
        self._rounds = 0

    def can_ask(self, candidates: Iterable[PeerId], data_peers: Iterable[PeerId]) -> None:
        """Who exchanges records, as far as their records say; and who of them plans by records."""
        able = set(candidates) - {self._me}
        self._candidates = sorted(able)
        self._data_peers = sorted(able.intersection(data_peers))
        self.chosen = [peer for peer in self.chosen if peer in able]

    def draw(self, now: float) -> None:
        """Have as many as there are to be."""
        for left_out in (self._shunned, self._silent):
            for peer in [peer for peer, until in left_out.items() if until <= now]:
                del left_out[peer]
        self.chosen = [peer for peer in self.chosen if not self.is_left_out(peer, now)]
        if self._rounds >= ROUNDS_WITH_ONE and self.chosen:
            self._rounds = 0
            self.chosen.pop(0)
        if len(self.chosen) < min(PARTNERS, len(self._candidates)):
            others = [peer for peer in self._candidates if peer not in self.chosen and not self.is_left_out(peer, now)]
            self.chosen += self._rng.sample(others, min(PARTNERS - len(self.chosen), len(others)))

    def round_begins(self) -> None:
        self._rounds += 1

    def data_peers(self, most: int) -> list[PeerId]:
        """All of them, or so many that are drawn."""
        if len(self._data_peers) <= most:
            return list(self._data_peers)
        return self._rng.sample(self._data_peers, most)

    def shun(self, peer: PeerId, now: float) -> None:
        """It has said what nobody has signed: neither asked nor heard for a while."""
        self._shunned[peer] = now + SHUNNED_S

    def did_not_answer(self, peer: PeerId, now: float) -> None:
        """Not asked for a while, unless it asks."""
        self._silent[peer] = now + UNANSWERED_S

    def asks(self, peer: PeerId) -> None:
        """So it is there, or there again."""
        self._silent.pop(peer, None)

    def knows(self, peer: PeerId) -> bool:
        """It has a record that says that it exchanges."""
        place = bisect_left(self._candidates, peer)
        return self._candidates[place : place + 1] == [peer]

    def is_shunned(self, peer: PeerId, now: float) -> bool:
        return self._shunned.get(peer, now) > now

    def is_left_out(self, peer: PeerId, now: float) -> bool:
        """It is not to be asked now."""
        return self.is_shunned(peer, now) or self._silent.get(peer, now) > now
