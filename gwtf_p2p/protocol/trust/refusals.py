"""What is refused is counted, and told when it begins and then once a minute, however often it comes.

Whoever floods a peer must not flood its log, its screen or its event log as well. What is told is one line for each kind of
refusal and sender; of strangers, who may be any number, one line for all of them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

TELL_S = 60.0
MOST_KINDS = 1024
"""Of which it is remembered when they were told last; the one that was refused longest ago makes room."""


@dataclass(slots=True)
class _Kind:
    told_at: float
    since: int = 0


class Refusals:
    """Of one peer; times are of any one clock, in seconds. `counts` has the number of refusals by reason, told or not."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def note(self, kind: Hashable, reason: str, now: float) -> int:
        """One more of this kind. Returns how many there have been since they were told last, if it is time to tell; else 0."""
        self.counts[reason] += 1
        known = self._kinds.get(kind)
        if known is None:
            self._kinds[kind] = _Kind(now)
            if len(self._kinds) > MOST_KINDS:
                self._kinds.popitem(last=False)
            return 1
        self._kinds.move_to_end(kind)
        known.since += 1
        if now - known.told_at < TELL_S:
            return 0
        count, known.told_at, known.since = known.since, now, 0
        return count
