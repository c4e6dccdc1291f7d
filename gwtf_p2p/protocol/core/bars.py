"""Peers that have broken the rules, and for how long nothing is heard from them.

Each breach is a *strike*. Three strikes within a minute bar a peer: nothing that it says is heard, and its connections are
ended, for 10 s the first time, four times as long each time after, up to an hour. An identity costs nothing, so this keeps no
stranger out for good; it makes a nuisance cheap to bear, and it ends one that is only a broken program.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId

STRIKES = 3
WINDOW_S = 60.0
FIRST_BAR_S, BAR_GROWTH, LONGEST_BAR_S = 10.0, 4.0, 3600.0
UNTIL_ALLOWED_S = 1e9
"""For how long a peer that may not take part is barred: until an order says otherwise, if any does."""

MOST_REMEMBERED = 4096
"""Peers with strikes; the one that was struck longest ago is forgotten."""


@dataclass(slots=True)
class _Entry:
    strikes: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))
    bars: int = 0
    barred_until: float = 0.0
    as_stranger: bool = False


class BarBook:
    """Of one peer; times are its own clock's."""

    def __init__(self) -> None:
        self._entries: OrderedDict[PeerId, _Entry] = OrderedDict()
        self._convicted: set[PeerId] = set()

    def is_barred(self, peer: PeerId, now: float) -> bool:
        """Nothing is heard from it now."""
        entry = self._entries.get(peer)
        return peer in self._convicted or (entry is not None and now < entry.barred_until)

    def strike(self, peer: PeerId, now: float, stranger: bool) -> float | None:
        """A breach; returns for how many seconds the peer is barred, if this was one too many.

        `stranger`: nobody knew it, so it may have been one whose record has not got about yet.
        """
        entry = self._entries.setdefault(peer, _Entry())
        self._entries.move_to_end(peer)
        while len(self._entries) > MOST_REMEMBERED:
            self._entries.popitem(last=False)
        entry.strikes.append(now)
        if len(entry.strikes) < STRIKES or now - entry.strikes[0] > WINDOW_S or now < entry.barred_until:
            return None
        entry.strikes.clear()
        seconds = min(FIRST_BAR_S * BAR_GROWTH**entry.bars, LONGEST_BAR_S)
        entry.bars, entry.barred_until, entry.as_stranger = entry.bars + 1, now + seconds, stranger
        return seconds

    def convict(self, peer: PeerId) -> None:
        """Nothing is heard from it in this run any more."""
        self._convicted.add(peer)

    def is_convicted(self, peer: PeerId) -> bool:
        """Others have proven that it cheats."""
        return peer in self._convicted

    def pardon(self, peer: PeerId, now: float) -> bool:
        """It was barred as a stranger and has become known: once, it is heard again. True when that ends a bar."""
        entry = self._entries.get(peer)
        if entry is None or not entry.as_stranger or entry.bars > 1 or now >= entry.barred_until:
            return False
        entry.barred_until = 0.0
        return True

    def strangers(self, now: float) -> list[PeerId]:
        """Those barred as strangers, sorted."""
        return sorted(peer for peer, e in self._entries.items() if e.as_stranger and now < e.barred_until)
