"""The receipt of an iteration: what a data peer's ledger says, added up by stage and peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Place, Stage
from gwtf_p2p.protocol.wire.messages import Credit
from gwtf_p2p.protocol.wire.receipts import MOST_BUSY_MS, Receipt, ReceiptLine


def credited(data_peer: PeerId, given: Iterable[Credit]) -> Counter[Place]:
    """Microbatches by stage and peer; the data peer has done its own stage of all of them."""
    counts: Counter[Place] = Counter()
    for credit in given:
        for k, peer in enumerate((data_peer, *credit.peers)):
            if peer:
                counts[Stage(k), peer] += 1
    return counts


class Receipting:
    """Of one data peer."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._passed: Counter[Place] = Counter()
        self._due: Counter[Place] = Counter()
        self._said: set[Place] = set()
        self._position = (0, -1)

    def audit_passed(self, stage: Stage, peer: PeerId) -> None:
        """What this peer had done of that stage was done again, and is right: its next line in a receipt says so."""
        self._passed[stage, peer] += 1

    def receipt(self, iteration: int, given: Iterable[Credit]) -> Receipt:
        """What is to be signed; the same audits in every report of one iteration."""
        ctx = self.ctx
        if self._position != (ctx.epoch, iteration):
            self._position = ctx.epoch, iteration
            kept = Counter({place: n for place, n in self._due.items() if place not in self._said})
            self._due, self._passed = kept + self._passed, Counter()
        counts = credited(ctx.me, given)
        self._said = set(counts)
        lines = tuple(
            ReceiptLine(stage, peer, count, self._busy_ms(stage, peer) * count, self._due[stage, peer])
            for (stage, peer), count in sorted(counts.items())
        )
        return Receipt(ctx.me, iteration, ctx.epoch, lines)

    def _busy_ms(self, stage: Stage, peer: PeerId) -> int:
        """Milliseconds of one microbatch by the peer's own record; 0 where it has measured nothing yet, or has moved on."""
        record = self.ctx.view.records.get(peer) if self.ctx.view is not None else None
        if record is None or record.stage != stage:
            return 0
        finish_s = record.finish.median_s if record.finish is not None and stage == DATA_STAGE else 0.0
        return min(round((record.forward_s + record.backward_s + finish_s) * 1000), MOST_BUSY_MS)
