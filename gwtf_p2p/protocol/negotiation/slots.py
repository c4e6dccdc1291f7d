"""What one side of a negotiating peer has agreed to: one slot per flow through it, at most as many as its capacity.

A slot joins an inflow (the hop that leads here) with an outflow (the hop that leads on). Without an inflow it is *spare*: a
path that it can offer to the stage before. Without an outflow it is *pathless*: a flow that must find another way. A slot with
neither is reserved while a request is under way, and vanishes otherwise. What is locked takes part in a request of this peer
that is not answered yet; nobody else gets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.negotiation_messages import HopEnd

Told = tuple[PeerId, int, Mapping[str, int]]


@dataclass(slots=True, eq=False)
class Slot:
    """`beyond_us`: cost of the path from the outflow's peer on; `others`: the same for other data peers' flows.

    `idle_since`: when it became spare or pathless. `changed_at`: when an end came or went. `told`: what was announced last.
    """

    sink: PeerId
    inflow: HopEnd | None = None
    outflow: HopEnd | None = None
    beyond_us: int = 0
    others: Mapping[str, int] = field(default_factory=dict)
    locked: bool = False
    idle_since: float = 0.0
    changed_at: float = 0.0
    told: Told | None = None


class Slots:
    """All slots of one side. A source's slots are used without an inflow, a sink's lead nowhere further."""

    def __init__(self, *, is_source: bool, is_sink: bool) -> None:
        self.is_source, self.is_sink = is_source, is_sink
        self.capacity = 0
        self.by_in: dict[str, Slot] = {}
        self.by_out: dict[str, Slot] = {}
        self._all: dict[int, Slot] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Slot]:
        """In order of their making; slots may go while this runs."""
        return iter(list(self._all.values()))

    @property
    def room(self) -> int:
        return self.capacity - len(self)

    def is_used(self, slot: Slot) -> bool:
        return self.is_source or slot.inflow is not None

    def spare(self) -> list[Slot]:
        """Paths without a flow that may be given away."""
        return [s for s in self if not s.locked and s.outflow is not None and not self.is_used(s)]

    def complete(self) -> list[Slot]:
        """Flows with a path that may be changed."""
        return [s for s in self if not s.locked and s.outflow is not None and self.is_used(s)]

    def pathless(self) -> list[Slot]:
        return [s for s in self if not s.locked and s.outflow is None and s.inflow is not None and not self.is_sink]

    def add(self, slot: Slot, *, beyond: bool = False) -> Slot:
        """Raises LocalProtocolError above the capacity, unless it may go beyond: a sink's is what it wants, no limit."""
        if self.room <= 0 and not beyond:
            raise LocalProtocolError(f"a slot more than the capacity of {self.capacity}", [str(s) for s in self])
        self._all[id(slot)] = slot
        if slot.inflow is not None:
            self.by_in[slot.inflow.link] = slot
        if slot.outflow is not None:
            self.by_out[slot.outflow.link] = slot
        return slot

    def set_in(self, slot: Slot, end: HopEnd | None, now: float) -> None:
        """Another inflow, or none."""
        if slot.inflow is not None and self.by_in.get(slot.inflow.link) is slot:
            del self.by_in[slot.inflow.link]
        if end is not None:
            self.by_in[end.link] = slot
        slot.inflow, slot.told = end, None
        self._changed(slot, now)

    def set_out(self, slot: Slot, end: HopEnd | None, now: float) -> None:
        """Another outflow, or none."""
        if slot.outflow is not None and self.by_out.get(slot.outflow.link) is slot:
            del self.by_out[slot.outflow.link]
        if end is not None:
            self.by_out[end.link] = slot
        slot.outflow = end
        self._changed(slot, now)

    def unlock(self, slot: Slot) -> None:
        slot.locked = False
        self._drop_if_empty(slot)

    def _changed(self, slot: Slot, now: float) -> None:
        slot.changed_at = slot.idle_since = now
        self._drop_if_empty(slot)

    def _drop_if_empty(self, slot: Slot) -> None:
        if slot.inflow is None and slot.outflow is None and not slot.locked:
            self._all.pop(id(slot), None)

    def check(self) -> None:
        """Raises LocalProtocolError when the books do not agree: for tests, at every moment."""
        if len(self) > max(self.capacity, 0) and not self.is_sink:
            raise LocalProtocolError(f"{len(self)} slots of {self.capacity}", [str(s) for s in self])
        ins = {s.inflow.link: s for s in self if s.inflow is not None}
        outs = {s.outflow.link: s for s in self if s.outflow is not None}
        if ins != self.by_in or outs != self.by_out:
            raise LocalProtocolError("hops and slots disagree", [str(s) for s in self])
