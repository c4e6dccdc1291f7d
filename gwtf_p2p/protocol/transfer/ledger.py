"""Who did which stage of a data peer's microbatches in this iteration, and what has to be done again.

A line begins when a microbatch is back: the gradient that arrives carries who did each stage. A credit becomes *void* when
its peer is lost, has started again or says that it does not have the microbatch. A stand-in (a peer that did the stage too,
in a repair) takes a void place; otherwise the stage is redone from the peer before it, lowest stage first: what comes after a
redone stage is repaired by the redo itself, if it is lost as well. With fast recovery a void place stays empty instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Credit

NOBODY = PeerId("")


@dataclass(frozen=True, slots=True)
class Gap:
    """Nobody is credited with this stage. `before` did the stage before it, `ahead` the ones after it."""

    index: int
    stage: Stage
    lost: PeerId
    before: PeerId
    ahead: tuple[PeerId, ...]


class Ledger:
    """Of one data peer and iteration. `is_lost` tells whether a peer is lost now."""

    def __init__(self, me: PeerId, is_lost: Callable[[PeerId], bool]) -> None:
        self.me, self._is_lost = me, is_lost
        self._lines: dict[int, list[PeerId]] = {}
        self._void: dict[tuple[int, Stage], PeerId] = {}
        self._stand_ins: dict[tuple[int, Stage], list[PeerId]] = {}
        self._asked: set[tuple[int, Stage, PeerId]] = set()
        self._tries: Counter[tuple[int, Stage]] = Counter()

    def clear(self) -> None:
        self._lines.clear()
        self._void.clear()
        self._stand_ins.clear()
        self._asked.clear()
        self._tries.clear()

    def back(self, index: int, done_by: tuple[PeerId, ...]) -> None:
        """A microbatch is back: `done_by[k - 1]` did stage k."""
        self._lines[index] = list(done_by)
        for k, peer in enumerate(done_by, start=1):
            if self._is_lost(peer):
                self._empty(index, Stage(k))

    def stands_in(self, index: int, stage: Stage, peer: PeerId) -> bool:
        """This peer did the stage too; True when that fills a gap."""
        self._asked.discard((index, stage, peer))
        spare = self._stand_ins.setdefault((index, stage), [])
        if peer not in spare:
            spare.append(peer)
        return (index, stage) in self._void and self._fill(index, stage)

    def void(self, peer: PeerId, stage: Stage | None = None, indices: Iterable[int] | None = None) -> bool:
        """What is credited to this peer (only at this stage, only these) is not there; True when that changes a line."""
        changed = False
        wanted = None if indices is None else set(indices)
        for index, line in self._lines.items():
            for k, credited in enumerate(line, start=1):
                if wanted is not None and index not in wanted:
                    continue
                place = (index, Stage(k))
                if stage in (None, k) and place in self._stand_ins and peer in self._stand_ins[place]:
                    self._stand_ins[place].remove(peer)
                if stage in (None, k) and credited == peer:
                    self._empty(index, Stage(k))
                    changed = True
                elif stage == k and place in self._void:
                    self._void[place] = peer  # the peer that was to redo it does not have it either
        return changed

    def drop_gaps(self) -> list[tuple[int, Stage, PeerId]]:
        """Fast recovery: leave gaps as they are, unless a stage would be left with nothing. Returns (index, stage, lost).

        A line that is needed for such a stage is made whole.
        """
        staffed = {k for line in self._lines.values() for k, peer in enumerate(line, start=1) if peer}
        needed = {index for index, stage in self._void if stage not in staffed}
        dropped = sorted((index, stage, peer) for (index, stage), peer in self._void.items() if index not in needed)
        for index, stage, _ in dropped:
            del self._void[index, stage]
        for index in needed:
            for k, peer in enumerate(self._lines[index], start=1):
                if not peer:
                    self._void.setdefault((index, Stage(k)), NOBODY)
        return dropped

    def gaps(self) -> list[Gap]:
        """The lowest gap of each microbatch."""
        lowest: dict[int, Stage] = {}
        for index, stage in self._void:
            lowest[index] = min(stage, lowest.get(index, stage))
        found = []
        for index, stage in sorted(lowest.items()):
            line = self._lines[index]
            before = line[stage - 2] if stage > 1 else self.me
            after = tuple(line[stage:])
            path = after[: after.index(NOBODY)] if NOBODY in after else after
            found.append(Gap(index, stage, self._void[index, stage], before, path))
        return found

    def ask_back(self, gap: Gap) -> bool:
        """True once for each gap and lost peer."""
        asked = (gap.index, gap.stage, gap.lost)
        fresh = asked not in self._asked
        self._asked.add(asked)
        return fresh

    def tries(self, gap: Gap) -> int:
        """How often this stage of this microbatch had to be redone, this time included."""
        self._tries[gap.index, gap.stage] += 1
        return self._tries[gap.index, gap.stage]

    def most_tries(self) -> int:
        """Of the gaps that there are."""
        return max((self._tries[place] for place in self._void), default=0)

    def credits_with(self, index: int, stage: Stage, peer: PeerId) -> bool:
        line = self._lines.get(index)
        return line is not None and line[stage - 1] == peer

    @property
    def has_gaps(self) -> bool:
        return bool(self._void)

    def credits(self) -> tuple[Credit, ...]:
        return tuple(Credit(index, tuple(line)) for index, line in sorted(self._lines.items()))

    def __repr__(self) -> str:
        return f"Ledger({len(self._lines)} lines, void {self._void})"

    def _empty(self, index: int, stage: Stage) -> None:
        line = self._lines[index]
        self._void[index, stage] = line[stage - 1]
        line[stage - 1] = NOBODY
        self._fill(index, stage)

    def _fill(self, index: int, stage: Stage) -> bool:
        for peer in self._stand_ins.get((index, stage), ()):
            if not self._is_lost(peer):
                self._lines[index][stage - 1] = peer
                del self._void[index, stage]
                return True
        return False
