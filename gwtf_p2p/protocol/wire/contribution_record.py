"""What a data peer publishes of the contributions to its run, in pages: a record holds 8 KiB, a run may have many peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval, Len

from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire import bounds as b
from gwtf_p2p.protocol.wire.receipts import MOST_PAGES
from gwtf_p2p.protocol.wire.records import SCHEMA_VERSION, WIRE_VERSION, decode

MOST_TOLD = 16
"""The newest stages that were rebuilt."""

PAGE_LINES = 60
"""With the longest numbers and ids of today's length a page fits into a record."""


@dataclass(frozen=True, slots=True)
class SumLine:
    """What `peer` has contributed in `stage`, over the run so far; '' stands for all that are not named. See `ReceiptLine`."""

    AS_LIST: ClassVar[bool] = True

    stage: b.StageNumber
    peer: b.NoPeer
    microbatches: b.Sum
    busy_ms: b.Sum = 0
    audits: b.Sum = 0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Nobody had the weights of this stage and version any more: they were made anew from those of the neighbouring stages."""

    AS_LIST: ClassVar[bool] = True

    stage: b.StageNumber
    version: b.Iteration


@dataclass(frozen=True, slots=True)
class ContributionRecord:
    """Page `page` of `pages` of what `peer` says that all peers have contributed to the weights of this version, the most
    microbatches first. `lines` are sums over the run so far; the first page has what was `rebuilt`."""

    peer: b.Peer
    run_id: RunId
    epoch: b.Epoch
    version: b.Iteration
    lines: Annotated[tuple[SumLine, ...], Len(0, PAGE_LINES)]
    page: Annotated[int, Interval(ge=0, lt=MOST_PAGES)] = 0
    pages: Annotated[int, Interval(ge=1, le=MOST_PAGES)] = 1
    rebuilt: Annotated[tuple[Rebuilt, ...], Len(0, MOST_TOLD)] = ()
    sequence_number: b.Count = 0
    schema_version: int = SCHEMA_VERSION
    wire_version: int = WIRE_VERSION


def decode_contributions(data: bytes) -> ContributionRecord:
    """Raises RemoteProtocolError when the bytes are no such record, OtherWireVersion when of another version."""
    return decode(ContributionRecord, data)
