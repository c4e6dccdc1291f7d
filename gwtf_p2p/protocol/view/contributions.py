"""What every peer has contributed to a run: the sums of all receipts whose iterations are committed, and of no others.

The sums are part of the data peers' state, as weights and moments are: the optimizer step that applies an average adds the
receipts of that attempt, a checkpoint holds the sums of its version, a data peer that joins downloads them, and a swarm that
goes back to a version has that version's again. So work that was tried again, done again or undone is in them once or not at
all, however a peer has started, died or come back, and all data peers of one version have equal sums.

Sums are whole numbers, so that they are equal to the bit in whatever order they are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Place, Stage
from gwtf_p2p.protocol.limits import MOST_STAGES, WHOLE
from gwtf_p2p.protocol.wire.receipts import Receipt

MOST_PLACES = 4096
"""Of (stage, peer), in the sums; beyond that those with the fewest microbatches are summed up under `OTHERS`, by stage."""

OTHERS = PeerId("")
"""Stands for all peers of a stage that are not named one by one."""

MOST_BYTES = 1 << 20
MOST_REBUILT = 64
"""The newest are kept."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Contribution:
    """Of one peer in one stage: microbatches in committed averages, milliseconds of computing them by the peer's own
    published medians, audits passed. What would be more than WHOLE stays at that, in whatever order it is added up."""

    microbatches: int = 0
    busy_ms: int = 0
    audits: int = 0

    def __add__(self, other: Contribution) -> Contribution:
        return Contribution(
            min(self.microbatches + other.microbatches, WHOLE),
            min(self.busy_ms + other.busy_ms, WHOLE),
            min(self.audits + other.audits, WHOLE),
        )


@dataclass(frozen=True, slots=True)
class Contributions:
    """Of a run up to some version of its weights. `rebuilt`: (stage, version) of weights that were lost, and made anew from
    those of the neighbouring stages."""

    of: Mapping[Place, Contribution] = field(default_factory=dict)
    rebuilt: tuple[tuple[Stage, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.of or self.rebuilt)

    def plus(self, receipts: Iterable[Receipt]) -> Contributions:
        """With those of one more committed iteration."""
        sums = dict(self.of)
        for receipt in receipts:
            for line in receipt.lines:
                place = line.stage, line.peer
                sums[place] = sums.get(place, Contribution()) + Contribution(line.microbatches, line.busy_ms, line.audits)
        return Contributions(folded(sums, MOST_PLACES), self.rebuilt)

    def with_rebuilt(self, stages: Iterable[Stage], version: int) -> Contributions:
        """These stages have begun anew at this version; nothing changes where that is known."""
        more = {(stage, version) for stage in stages}
        known = sorted({*self.rebuilt, *more}, key=lambda each: (each[1], each[0]))
        return Contributions(self.of, tuple(known[-MOST_REBUILT:]))

    @property
    def by_peer(self) -> dict[PeerId, Contribution]:
        """Over all stages that a peer has held, most microbatches first; equal ones by id."""
        sums: dict[PeerId, Contribution] = {}
        for (_, peer), contribution in self.of.items():
            sums[peer] = sums.get(peer, Contribution()) + contribution
        return dict(sorted(sums.items(), key=lambda item: (-item[1].microbatches, item[0])))

    def of_stage(self, stage: Stage) -> int:
        """Microbatches that this stage has done."""
        return sum(contribution.microbatches for (k, _), contribution in self.of.items() if k == stage)

    # ---- as bytes

    def to_bytes(self) -> bytes:
        """The same for equal sums."""
        rows = [[stage, peer, c.microbatches, c.busy_ms, c.audits] for (stage, peer), c in sorted(self.of.items())]
        rebuilt = [[list(each) for each in self.rebuilt]] if self.rebuilt else []
        return json.dumps([_FORMAT, rows, *rebuilt], separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Contributions:
        """Raises RemoteProtocolError when these are no sums."""
        if len(data) > MOST_BYTES:
            raise RemoteProtocolError(f"contributions: {len(data)} bytes, over the bound of {MOST_BYTES}")
        try:
            form, rows, *rest = json.loads(data)
            rebuilt = tuple(_rebuilt(each) for each in (rest[0] if rest else ()))
            if form != _FORMAT or len(rows) > MOST_PLACES or len(rest) > 1 or len(rebuilt) > MOST_REBUILT:
                raise ValueError("another form, or too long")
            return Contributions(dict(_place(row) for row in rows), rebuilt)
        except (ValueError, TypeError, RecursionError) as error:
            raise RemoteProtocolError(f"contributions: {error}") from error


def _place(row: list[object]) -> tuple[Place, Contribution]:
    """Raises ValueError."""
    stage, peer, *sums = row
    whole = [number for number in (stage, *sums) if type(number) is int and 0 <= number <= WHOLE]
    if len(whole) != 4 or whole[0] > MOST_STAGES or not isinstance(peer, str) or len(peer) > 128:
        raise ValueError("expected a stage, a peer and three whole numbers")
    return (Stage(whole[0]), PeerId(peer)), Contribution(*whole[1:])


def _rebuilt(row: list[object]) -> tuple[Stage, int]:
    """Raises ValueError."""
    stage, version = row
    if type(stage) is not int or not 0 <= stage <= MOST_STAGES or type(version) is not int or not 0 <= version <= WHOLE:
        raise ValueError("expected a stage and a version")
    return Stage(stage), version


def ranked(sums: Mapping[Place, Contribution]) -> list[tuple[Place, Contribution]]:
    """The most microbatches first; equal ones by stage and id."""
    return sorted(sums.items(), key=lambda item: (-item[1].microbatches, item[0]))


def folded(sums: Mapping[Place, Contribution], most: int) -> Mapping[Place, Contribution]:
    """No longer than `most`, with the same totals in every stage. Only where there are more stages than that, those with the
    least are left out."""
    if len(sums) <= most:
        return sums
    stages = len({stage for stage, _ in sums})
    named = [item for item in ranked(sums) if item[0][1] != OTHERS]
    kept = dict(named[: max(0, most - stages)])
    for (stage, peer), contribution in sums.items():
        if (stage, peer) not in kept:
            place = stage, OTHERS
            kept[place] = kept.get(place, Contribution()) + contribution
    return kept if len(kept) <= most else dict(ranked(kept)[:most])
