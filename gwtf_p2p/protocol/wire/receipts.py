"""What a data peer signs for: who did which stage of its microbatches in one iteration.

A receipt travels with the report that an iteration is finished, and with the attempt that averages it, so it counts if and only
if that attempt is committed (`protocol/view/contributions`). Its signature is over `signed_bytes`, by the key whose hash is the
data peer's id; `key` is that public key, in OpenSSH's form. Both are empty in the simulator, where nobody can lie about who
sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgpack
from annotated_types import Len

from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.limits import MOST_PEERS
from gwtf_p2p.protocol.wire import bounds as b

_DOMAIN = "gwtf receipt 1"
"""A signature of anything else must not pass for one of a receipt."""

MOST_PAGES = 16
"""Of the sums, as one data peer publishes them (`contribution_record`)."""


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """`peer` did `stage` of so many microbatches; empty stands for all that are not named. `busy_ms`: milliseconds of
    computing, by the medians in the peer's own record. `audits`: those that it has passed since the receipt before."""

    stage: b.StageNumber
    peer: b.NoPeer
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
        lines = [[line.stage, line.peer, line.microbatches, line.busy_ms, line.audits] for line in self.lines]
        packed: bytes = msgpack.packb([_DOMAIN, run_id, self.data_peer, self.iteration, self.epoch, lines])
        return packed


Receipts = Annotated[tuple[Receipt, ...], Len(0, MOST_PEERS)]


def contributions_key(run_id: RunId, page: int) -> str:
    """Where the DHT has what data peers say of contributions."""
    return f"{run_id}.contributions.{page}"
