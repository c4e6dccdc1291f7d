"""What a data peer signs for: who did which stage of its microbatches in one iteration.

A receipt travels with the report that an iteration is finished, and with the attempt that averages it, so it counts if and only
if that attempt is committed (`protocol/view/contributions`). Its signature is over `signed_bytes`, by the key whose hash is the
data peer's id; `key` is that public key, in OpenSSH's form. Both are empty in the simulator, where nobody can lie about who
sends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import msgpack
from annotated_types import Len

from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.limits import MOST_PEERS
from gwtf_p2p.protocol.wire import bounds as b

_DOMAIN = "gwtf receipt 1"
"""A signature of anything else must not pass for one of a receipt."""

MOST_BUSY_MS = 60 * 60 * 1000
"""Of one microbatch: what a peer's record claims beyond it is not signed for."""

MOST_PAGES = 16
"""Of the sums, as one data peer publishes them (`contribution_record`)."""


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """`peer` did `stage` of so many microbatches. `busy_ms`: milliseconds of computing, by the medians in the peer's own
    record. `audits`: those that it has passed, and that no receipt has told of before. There are many: a list on the wire."""

    AS_LIST: ClassVar[bool] = True

    stage: b.StageNumber
    peer: b.Peer
    microbatches: b.Count
    busy_ms: b.Count = 0
    audits: b.Count = 0


Lines = Annotated[tuple[ReceiptLine, ...], Len(0, MOST_PEERS)]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Of one data peer and iteration; one line for each stage and peer, in this order."""

    data_peer: b.Peer
    iteration: b.Iteration
    epoch: b.Epoch
    lines: Lines
    key: b.Signature = ""
    signature: b.Signature = ""

    def signed_bytes(self, run_id: RunId) -> bytes:
        """What the signature is over: all but itself, and the run that it is of."""
        packed: bytes = msgpack.packb([_DOMAIN, run_id, *self.contents])
        return packed

    @property
    def contents(self) -> list[Any]:
        """All but the signature."""
        lines = [[line.stage, line.peer, line.microbatches, line.busy_ms, line.audits] for line in self.lines]
        return [self.data_peer, self.iteration, self.epoch, lines]

    def without(self, peers: Collection[PeerId]) -> Receipt:
        """What of it counts where these were left out of the average: no longer what was signed."""
        if not peers:
            return self
        lines = tuple(line for line in self.lines if line.peer not in peers)
        return replace(self, lines=lines, key="", signature="")


Receipts = Annotated[tuple[Receipt, ...], Len(0, MOST_PEERS)]


def digest_of(receipts: Iterable[Receipt]) -> str:
    """Of what they say, in this order; '' of none."""
    contents = [receipt.contents for receipt in receipts]
    return hashlib.sha256(msgpack.packb(contents)).hexdigest()[:32] if contents else ""


def contributions_key(run_id: RunId, page: int) -> str:
    """Where the DHT has what data peers say of contributions."""
    return f"{run_id}.contributions.{page}"
