"""Which peers have room, as one peer can know it: from the records, and from what it has sent since they were made.

Records are as old as the refresh period, so a stage peer's published occupancy misses what came since. A router counts what it
has sent itself until the microbatch ends or the next view arrives, and avoids peers that refused or failed until then. When
nobody seems to have room, everybody who is not excluded may be tried: the stage peer's verdict decides, not an old record.
"""

from __future__ import annotations

from collections import Counter

from gwtf_p2p.protocol.core.router import HopObservation
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView


class SpareCapacity:
    """Follows one router's views and hops. `promised`: the flows that a plan leads through each peer, where there is a plan."""

    def __init__(self) -> None:
        self.view: NetworkView | None = None
        self._sent: Counter[PeerId] = Counter()
        self._sent_for: dict[MicrobatchId, list[PeerId]] = {}
        self._refused: set[PeerId] = set()
        self.promised: Counter[PeerId] = Counter()

    def observe_view(self, view: NetworkView) -> None:
        self.view = view
        self._sent.clear()
        self._sent_for.clear()
        self._refused.clear()

    def observe_hop(self, hop: HopObservation) -> None:
        if hop.seconds is None:
            self._refused.add(hop.receiver)

    def observe_end(self, microbatch: MicrobatchId) -> None:
        self._sent.subtract(self._sent_for.pop(microbatch, []))

    def sent(self, microbatch: MicrobatchId, peers: tuple[PeerId, ...]) -> None:
        """This router has just chosen these peers."""
        self._sent.update(peers)
        self._sent_for.setdefault(microbatch, []).extend(peers)

    def spare(self, peer: PeerId) -> int:
        """Microbatches that the peer could still take, as far as is known."""
        assert self.view is not None
        record = self.view.records[peer]
        return record.capacity - record.occupancy - self._sent[peer]

    def able(self, stage: Stage, excluding: frozenset[PeerId]) -> tuple[tuple[PeerId, ...], bool]:
        """Peers of a stage that may be asked, sorted by id, and whether they are known to have room.

        Those with room that no flow needs, else those with room, else all that are not excluded."""
        assert self.view is not None
        records = self.view.records
        allowed = tuple(p for p in self.view.peers_of_stage(stage) if p not in excluding)
        roomy = tuple(p for p in allowed if p not in self._refused and self.spare(p) > 0)
        unpromised = tuple(p for p in roomy if self.promised[p] < records[p].capacity)
        return unpromised or roomy or allowed, bool(roomy)
