"""Slots that lead nowhere or that nobody uses: how long a side waits for them, and when it makes room for other ones.

A flow that has found no path in `patience_s` is pushed back. A spare path that nobody took is cancelled, and looked for again
less and less often, unless somebody asks for one.
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.side import Side


class IdleSlots:
    """Gives up the idle slots of one side, and knows which paths are worth looking for."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._spare_after = 0.0
        self._patience_s = side.config.patience_s
        self._wanted: dict[PeerId, float] = {}

    @property
    def may_be_filled(self) -> bool:
        """A path may be looked for that no flow needs yet."""
        return self.side.now >= self._spare_after

    @property
    def wanted(self) -> list[PeerId]:
        """Data peers to which somebody before me has lately looked for a path."""
        side = self.side
        return sorted(sink for sink, at in self._wanted.items() if side.now - at <= side.config.patience_s)

    def taken(self) -> None:
        """A spare path has found a flow: the next ones are worth waiting for."""
        self._patience_s = self.side.config.patience_s

    def want(self, sink: PeerId) -> None:
        """Somebody before me needs a path to this sink: look for one, and make room for it."""
        side = self.side
        self._wanted[sink] = side.now
        self._spare_after = side.now
        other = next((s for s in side.slots.spare() if s.sink not in self._wanted), None)
        if side.slots.room <= 0 and other is not None:
            side.cancel_out(other)

    def lose_patience(self) -> None:
        """Push back what has found no path, cancel what nobody wants."""
        side, patience_s = self.side, self._patience_s
        for slot in side.slots.pathless():
            if side.now - slot.idle_since > side.config.patience_s:
                side.push_back(slot)
        for slot in [] if side.slots.is_sink else side.slots.spare():
            if side.now - slot.idle_since > patience_s * (1 - side.random.random() / 6):
                side.cancel_out(slot)
                self._patience_s = min(2 * patience_s, 8 * side.config.patience_s)
                self._spare_after = side.now + self._patience_s

    def trim(self) -> None:
        """The capacity has shrunk: first what nobody uses goes, then the dearest."""
        side, slots = self.side, self.side.slots
        for slot in sorted(slots, key=lambda s: (slots.is_used(s), -side.cost_us(s))):
            if slots.room >= 0:
                return
            if not slot.locked:
                side.push_back(slot)
                side.cancel_out(slot)
