"""The simulated DHT: records become visible to others after a delay, and readers look every so often.

Every reader sees the same, equally old records: both routers of a comparison plan on the same staleness.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import StageRecord


@dataclass
class Directory:
    """`delay_s` from publication to visibility; visibility advances in ticks, so that readers share view objects."""

    stages: int
    activation_bytes: int
    gradient_bytes: int
    delay_s: float = 1.0
    tick_s: float = 0.5
    end_bytes: int | None = None
    expiry_s: float = 45.0
    _published: dict[PeerId, list[tuple[float, StageRecord]]] = field(default_factory=dict)
    _cached: tuple[float, NetworkView] | None = None

    def publish(self, record: StageRecord, now: float) -> None:
        told = self._published.setdefault(record.peer, [])
        told.append((now, record))
        shown_since = self._tick(now) - self.delay_s
        while len(told) > 1 and told[1][0] <= shown_since:
            del told[0]

    def parted(self) -> Directory:
        """What whoever is cut off from here has of the same records, from now on alone."""
        found = replace(self)
        found._published, found._cached = {peer: [*told] for peer, told in self._published.items()}, None
        return found

    def take_over(self, other: Directory) -> None:
        """The two are one again: of each peer, whatever was published last."""
        for peer, told in other._published.items():
            own = self._published.get(peer)
            if own is None or own[-1][1].sequence_number < told[-1][1].sequence_number:
                self._published[peer] = told
        self._cached = None

    def has_record_of(self, peer: PeerId) -> bool:
        """It has published one, whether it is visible yet or not."""
        return peer in self._published

    def visible_at(self, published_at: float) -> float:
        """When readers see a record: the first tick after the delay."""
        return (int((published_at + self.delay_s) / self.tick_s) + 1) * self.tick_s

    def _tick(self, now: float) -> float:
        """When readers looked last."""
        return int(now / self.tick_s) * self.tick_s

    def view(self, now: float) -> NetworkView:
        """What is visible at `now`; the same object while nothing new became visible."""
        tick = self._tick(now)
        if self._cached is not None and self._cached[0] == tick:
            return self._cached[1]
        horizon = tick - self.delay_s
        visible: list[StageRecord] = []
        for peer in sorted(self._published):
            seen = [(at, record) for at, record in self._published[peer] if at <= horizon]
            if seen and seen[-1][0] > horizon - self.expiry_s:
                visible.append(seen[-1][1])
        if self._cached is not None and list(self._cached[1].records.values()) == visible:
            view = self._cached[1]
        else:
            former = self._cached[1] if self._cached is not None else None
            view = NetworkView.of(visible, self.stages, self.activation_bytes, former, self.gradient_bytes, self.end_bytes)
        self._cached = (tick, view)
        return view
