"""The peers that are lost, and which of them may be back: told by answers, and by records that are newer than the loss.

A lost peer is *probed*, once at a time, when it shows a sign of life: a message, or a record other than the one that it was
lost with. An answer brings it *back*, but that it serves, only a new record shows: a program that has been started again
answers too, while its old record still says ONLINE. One that has said goodbye has *left*: nobody asks after it, until it
publishes that it has started again.
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NO_RECORD, NetworkView
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.records import PeerState

MOST_TOLD = 32
"""Of lost peers, in the record of one that tells of them."""


class LostPeers:
    """As one peer knows them. `lost` has the sequence number of the newest record that was seen of each, `back` of the one
    that it was lost with."""

    def __init__(self) -> None:
        self.lost: dict[PeerId, int] = {}
        self.back: dict[PeerId, int] = {}
        self.missed_at: dict[PeerId, float] = {}
        self._lost_with: dict[PeerId, int] = {}
        self._left: set[PeerId] = set()
        self._probed: set[PeerId] = set()
        self._view: NetworkView | None = None
        self._peers: frozenset[PeerId] | None = None

    @property
    def peers(self) -> frozenset[PeerId]:
        """Those that are lost. Asked for after nearly every event, and changed by few."""
        if self._peers is None:
            self._peers = frozenset(self.lost)
        return self._peers

    def observe_view(self, view: NetworkView) -> list[PeerId]:
        """Lost peers that have published another record."""
        former, self._view = self._view, view
        if not self.lost and not self.back:
            return []
        self.back = {peer: sequence for peer, sequence in self.back.items() if self._sequence(peer) == sequence}
        found = []
        lost = self.lost.keys() & view.since(former).other if former is not None else self.lost.keys()
        for peer in sorted(lost):
            sequence, now = self.lost[peer], self._sequence(peer)
            if now in (sequence, NO_RECORD):
                continue
            self.lost[peer] = now
            if view.records[peer].state is not PeerState.DRAINING:
                self._left.discard(peer)
            found.append(peer)
        return found

    def told(self) -> dict[str, int]:
        """What a data peer's record says: of each lost peer that has a record the newest one's number, by its tag."""
        known = [(peer, sequence) for peer, sequence in sorted(self.lost.items()) if self._sequence(peer) != NO_RECORD]
        return {tag(peer): sequence for peer, sequence in known[:MOST_TOLD]}

    def _sequence(self, peer: PeerId) -> int:
        """Of the peer's newest record."""
        record = self._view.records.get(peer) if self._view is not None else None
        return record.sequence_number if record is not None else NO_RECORD

    def probe(self, peer: PeerId) -> bool:
        """It has shown a sign of life; True when it is to be asked about that."""
        if peer not in self.lost or peer in self._probed or peer in self._left:
            return False
        self._probed.add(peer)
        return True

    def end_probe(self, peer: PeerId) -> None:
        """It has answered, or has not."""
        self._probed.discard(peer)

    def add(self, peer: PeerId, missed_at: float) -> None:
        """It is lost; it was first missed at this time."""
        self.missed_at[peer] = missed_at
        self.back.pop(peer, None)
        self.lost[peer] = self._lost_with[peer] = self._sequence(peer)
        self._peers = None

    def forget(self, peer: PeerId) -> None:
        """Take it for one that was never lost."""
        self.lost.pop(peer, None)
        self._peers = None

    def leave(self, peer: PeerId) -> None:
        """It is lost because it has said goodbye."""
        self._left.add(peer)

    def has_left(self, peer: PeerId) -> bool:
        """It has said goodbye, and has not started again."""
        return peer in self._left

    def answered(self, peer: PeerId) -> bool:
        """True when a lost peer is back."""
        self._left.discard(peer)
        self._probed.discard(peer)
        if self.lost.pop(peer, None) is None:
            return False
        self._peers = None
        lost_with = self._lost_with.pop(peer, NO_RECORD)
        if lost_with == self._sequence(peer):
            self.back[peer] = lost_with
        return True
