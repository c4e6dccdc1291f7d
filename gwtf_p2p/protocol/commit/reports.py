"""What the data peers have reported of the iteration at hand: their ledgers, and what of these turns out not to be there."""

from __future__ import annotations

from collections.abc import Iterable

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Finished, Missing


class Reports:
    """Of one coordinator."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.finished: dict[PeerId, Finished] = {}

    def credited(self, data_peers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Whoever did something that these have reported."""
        ledgers = [self.finished[peer].ledger for peer in data_peers if peer in self.finished]
        return frozenset(peer for ledger in ledgers for credit in ledger for peer in credit.peers if peer)

    def void(self, peer: PeerId, microbatches: frozenset[MicrobatchId] | None) -> None:
        """A peer does not have (some of) what is credited to it: its data peers must have it redone and report again."""
        for data_peer, finished in sorted(self.finished.items()):
            void: dict[Stage, list[MicrobatchId]] = {}
            for credit in finished.ledger:
                microbatch = MicrobatchId(data_peer, finished.iteration, credit.index)
                for k, credited in enumerate(credit.peers, start=1):
                    if credited == peer and (microbatches is None or microbatch in microbatches):
                        void.setdefault(Stage(k), []).append(microbatch)
            if void:
                del self.finished[data_peer]
            for stage, missing in void.items():
                self.ctx.emit(Send(data_peer, Missing(peer, stage, tuple(missing))))
