"""Links as this peer measures them on its real traffic; nothing is published that was not measured.

Of every push the round trip (header to verdict) and, if it carried enough bytes to say something, the bandwidth are kept.
Published are, with count and age, the median round trip and the `ALONE` quantile of the bandwidth over the last samples:
transfers share lines, and planners, who share them out themselves, need what a link carries when it is alone. A figure is told
anew when it has moved by `STEADY`, a round trip by `LEAST_ROUND_TRIP_S` besides: below that is noise, and planners would begin
anew for it. A link without traffic has the
figures of a probe (`idle_probe`), and says so; it counts as one sample when there is traffic. A probe too small to say
something about bandwidth measures the round trip of a link that was not used lately anew. One that carries less than what the
figure was made of says what the link carries at least: it raises the figure that traffic has left, and lowers none.

A transfer that is too small to be compared with others, and that took long all the same, as with codecs on slow links, says as
much: a link carries at least that. It lowers nothing, since it may have waited for a machine that was busy.

This peer's line is the most that its transfers have carried together: more than any single link where the links are the narrow
part. A line probe (`carried_together`) counts until the next one. What its owner has capped is told as no more than the cap,
and an unmeasured line as the cap: what is saved up in a pause is not what it carries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import median

from gwtf_p2p.protocol.core.deadlines import steady
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.idle_links import BANDWIDTH_AGAIN_S, LinkAge
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PathType

SAMPLES = 16
LEAST_BYTES = 32 << 10
"""A transfer below this says more about latency than about bandwidth."""

LONG_S = 0.05
"""What took so long is told from a round trip that was a little longer or shorter."""

ALONE = 0.9
STEADY = 0.1
"""Part of the figure that was told."""

LEAST_ROUND_TRIP_S = 0.002
"""By less a round trip differs when a processor is busy for a moment, and no hop is dearer for it."""


@dataclass(slots=True)
class _Samples:
    round_trip_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    bytes_per_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    newest_at: float = 0.0
    bandwidth_at: float = 0.0
    probed_bytes: int = 0
    told_round_trip_s: float = 0.0
    told_bytes_per_s: float = 0.0
    source: LinkSource = LinkSource.TRAFFIC
    path: PathType = PathType.PUBLIC

    @property
    def has_traffic(self) -> bool:
        return bool(self.bytes_per_s) and self.source is LinkSource.TRAFFIC

    def outweighs(self, size: int, seconds: float) -> bool:
        """Whether the figure stands against a probe of so many bytes: larger transfers have made it, and it is no smaller."""
        return (self.has_traffic or size < self.probed_bytes) and self.told_bytes_per_s >= size / seconds


class LinkProbes:
    """Round trips and bandwidths by peer. `clock` gives seconds that only grow, `line` says what its owner has capped."""

    def __init__(self, clock: Callable[[], float], line: Line | None = None) -> None:
        self._clock, self._line = clock, line or Line()
        self._links: dict[PeerId, _Samples] = {}
        self._ended: deque[tuple[float, float, int]] = deque(maxlen=SAMPLES)
        self._together: deque[float] = deque(maxlen=SAMPLES)
        self._told_line = 0.0
        self._probed_line: tuple[float, float] = 0.0, -inf

    def observe(
        self, to: PeerId, round_trip_s: float, transferred_bytes: int, transfer_s: float, *, probe: bool = False
    ) -> None:
        """One push to `to`: how long its header took to be answered, and its payload to go through."""
        samples, now = self._links.setdefault(to, _Samples()), self._clock()
        enough = transferred_bytes >= LEAST_BYTES and transfer_s > 0
        if probe and enough:
            if samples.has_traffic and now - samples.bandwidth_at < BANDWIDTH_AGAIN_S:
                return
            samples.bandwidth_at = now
            if enough := not samples.outweighs(transferred_bytes, transfer_s):  # the newest one counts
                told_s, path = samples.told_round_trip_s, samples.path
                samples = _Samples(bandwidth_at=now, source=LinkSource.PROBE, path=path, told_round_trip_s=told_s)
                self._links[to], samples.probed_bytes = samples, transferred_bytes
        elif enough:
            samples.source, samples.bandwidth_at = LinkSource.TRAFFIC, now
        if probe:  # of a link that was not used lately: what its round trips were says little by now
            samples.round_trip_s.clear()
        samples.newest_at = now
        samples.round_trip_s.append(round_trip_s)
        if enough:
            samples.bytes_per_s.append(transferred_bytes / transfer_s)
            samples.told_bytes_per_s = steady(samples.told_bytes_per_s, _quantile(samples.bytes_per_s, ALONE), STEADY)
            self._carried(samples.newest_at, transferred_bytes, transfer_s)
        elif not probe and transfer_s >= LONG_S:
            self._carries_at_least(samples, transferred_bytes, transfer_s)
        told_s, median_s = samples.told_round_trip_s, median(samples.round_trip_s)
        if not told_s or abs(median_s - told_s) > LEAST_ROUND_TRIP_S:
            samples.told_round_trip_s = steady(told_s, median_s, STEADY)

    def round_trip_s(self, to: PeerId) -> float:
        """As it is told; 0.0 while it is not known."""
        return self._links[to].told_round_trip_s if to in self._links else 0.0

    def carried_together(self, transferred_bytes: int, seconds: float) -> None:
        """A line probe: transfers to several peers that began together."""
        rate, now = transferred_bytes / max(seconds, 1e-6), self._clock()
        before, at = self._probed_line
        if rate > before or now - at >= BANDWIDTH_AGAIN_S:  # one of which only a part was taken says less than the one before
            self._probed_line = steady(before, rate, STEADY), now

    def path_changed(self, to: PeerId, path: PathType) -> None:
        """Another kind of path to a peer: what was measured on the old one says nothing about it."""
        samples = self._links.setdefault(to, _Samples())
        if samples.path is not path:
            samples.path = path
            samples.round_trip_s.clear()
            samples.bytes_per_s.clear()
            samples.told_round_trip_s = samples.told_bytes_per_s = 0.0

    def ages(self) -> dict[PeerId, LinkAge]:
        """Of every link with at least one bandwidth sample."""
        now = self._clock()
        return {
            peer: LinkAge(now - samples.newest_at, now - samples.bandwidth_at)
            for peer, samples in self._links.items()
            if samples.bytes_per_s
        }

    def measurements(self) -> list[LinkMeasurement]:
        """Every link with at least one bandwidth sample."""
        now = self._clock()
        return [
            LinkMeasurement(
                to=peer,
                round_trip_s=samples.told_round_trip_s,
                bandwidth_bytes_per_s=min(samples.told_bytes_per_s, self._line.up.bytes_per_s or inf),
                source=samples.source,
                samples=len(samples.bytes_per_s),
                age_s=round(now - samples.newest_at, 3),
                path=samples.path,
            )
            for peer, samples in self._links.items()
            if samples.bytes_per_s
        ]

    @property
    def line_bytes_per_s(self) -> float:
        """A lower bound of this peer's line, within its cap; 0.0 while unmeasured, if it has none."""
        told = max([self._told_line, self._probed_line[0], *(samples.told_bytes_per_s for samples in self._links.values())])
        cap = self._line.bytes_per_s
        return min(told or ASSUMED_BANDWIDTH_BYTES_PER_S, cap) if cap else told

    def _carries_at_least(self, samples: _Samples, size: int, seconds: float) -> None:
        if samples.bytes_per_s and size / seconds > samples.told_bytes_per_s:
            samples.bytes_per_s.append(size / seconds)
            samples.told_bytes_per_s = steady(samples.told_bytes_per_s, size / seconds, STEADY)
        self._carried(samples.newest_at, size, seconds)

    def _carried(self, now: float, size: int, seconds: float) -> None:
        """A transfer has ended: with the parts of others that went beside it, how much was carried in its time?"""
        began = now - seconds
        beside = sum(part * max(0.0, end - max(start, began)) / (end - start) for start, end, part in self._ended)
        self._ended.append((began, now, size))
        self._together.append((size + beside) / seconds)
        self._told_line = steady(self._told_line, _quantile(self._together, ALONE), STEADY)


def _quantile(samples: Iterable[float], part: float) -> float:
    """The sample that so great a part of all is below or equal to."""
    ordered = sorted(samples)
    return ordered[ceil(part * len(ordered)) - 1]
