"""Contributions as data peers tell them: what each of them publishes, and what a reader makes of what they say.

Data peers of one version have equal sums, so a reader can compare them. It goes by the version that at least half of the data
peers have reached, and by what most of those that tell of it say: one that lies, or tells of a version that is not there yet,
changes nothing while it is in the minority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import PeerId, Place, RunId
from gwtf_p2p.protocol.view.contributions import Contribution, Contributions, folded, ranked
from gwtf_p2p.protocol.wire.contribution_record import MOST_TOLD, PAGE_LINES, ContributionRecord, Rebuilt, SumLine
from gwtf_p2p.protocol.wire.receipts import MOST_PAGES


@dataclass(frozen=True, slots=True)
class Told:
    """`contributions` up to `version` (of `epoch`). Of `data_peers` that tell of this version, `agree` say the same; `complete`
    is False while pages of it are missing."""

    contributions: Contributions = field(default_factory=Contributions)
    epoch: int = 0
    version: int = 0
    agree: int = 0
    data_peers: int = 0
    complete: bool = True


def pages_of(
    peer: PeerId, run_id: RunId, position: tuple[int, int], contributions: Contributions, number: int
) -> list[ContributionRecord]:
    """What this data peer has to publish; `position` is (epoch, version), `number` the sequence number."""
    epoch, version = position
    ordered = ranked(folded(contributions.of, MOST_PAGES * PAGE_LINES))
    lines = [SumLine(stage, of, c.microbatches, c.busy_ms, c.audits) for (stage, of), c in ordered]
    cut = [tuple(lines[at : at + PAGE_LINES]) for at in range(0, len(lines), PAGE_LINES)] or [()]
    rebuilt = tuple(Rebuilt(*each) for each in contributions.rebuilt[-MOST_TOLD:])
    return [
        ContributionRecord(
            peer, run_id, epoch, version, page, number_of_page, len(cut), () if number_of_page else rebuilt, number
        )
        for number_of_page, page in enumerate(cut)
    ]


def told(records: Iterable[ContributionRecord], data_peers: Collection[PeerId]) -> Told:
    """What these say together; only those of `data_peers` are asked."""
    pages: dict[PeerId, dict[tuple[int, int], dict[int, ContributionRecord]]] = {}
    for record in records:
        if record.peer in data_peers:
            pages.setdefault(record.peer, {}).setdefault((record.epoch, record.version), {})[record.page] = record
    begun = {peer: [position for position, of in found.items() if 0 in of] for peer, found in pages.items()}
    newest = {peer: max(positions) for peer, positions in begun.items() if positions}
    if not newest:
        return Told()
    position = sorted(newest.values())[(len(newest) - 1) // 2]
    said = {peer: found[position] for peer, found in pages.items() if position in found and 0 in found[position]}
    lines = {peer: tuple(line for _, page in sorted(of.items()) for line in page.lines) for peer, of in said.items()}
    whole = {peer: (of, said[peer][0].rebuilt) for peer, of in lines.items()}
    common, agree = Counter(whole[peer] for peer in sorted(whole)).most_common(1)[0]
    chosen = min(peer for peer, of in whole.items() if of == common)
    complete = len(said[chosen]) == said[chosen][0].pages
    rebuilt = tuple((each.stage, each.version) for each in common[1])
    return Told(Contributions(_places(common[0]), rebuilt), *position, agree, len(lines), complete)


def _places(lines: Iterable[SumLine]) -> Mapping[Place, Contribution]:
    return {(line.stage, line.peer): Contribution(line.microbatches, line.busy_ms, line.audits) for line in lines}
