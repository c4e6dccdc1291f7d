"""A line that its owner has capped: when so many bytes may pass. A token bucket, without a clock of its own.

Payloads wait for their turn, the most urgent piece first (`sending`); small messages do not, but what they take is taken from
the payloads that follow. In any stretch of time payloads are at most `bytes_per_s` times its length and `burst_bytes`.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.sending import Place, Places, Urgency

BURST_S = 0.1
"""What an idle line saves up, in seconds of it."""

LEAST_WAIT_S, _EXACT_S = 1e-3, 1e-6
"""How long to wait at least for another one that goes first; what a clock is not more exact than."""

MOST_PIECE_BYTES, LEAST_PIECE_BYTES = 1 << 19, 1 << 12


class LineCap:
    """One direction of a line. `bytes_per_s` 0: no cap, bytes are only counted. `total_bytes`: all that has passed."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        self.bytes_per_s, self.total_bytes = bytes_per_s, 0
        self.burst_bytes = max(LEAST_PIECE_BYTES, BURST_S * bytes_per_s)
        self._free_at = -1e18
        self._places = Places()

    @property
    def piece_bytes(self) -> int:
        """How much may wait as one: not so much that it would pass in one long burst."""
        if not self.bytes_per_s:
            return MOST_PIECE_BYTES
        return int(min(MOST_PIECE_BYTES, self.burst_bytes))

    def join(self, size: int, urgency: Urgency) -> Place:
        """A piece of a payload that wants to pass: ask `wait_of` when it may."""
        return self._places.join(urgency, size)

    def wait_of(self, place: Place, now: float) -> float:
        """0: it passes now, and is booked. Else in how many seconds to ask again: it is not the first, or the line is full."""
        if self.bytes_per_s:
            saved_s = self.burst_bytes / self.bytes_per_s
            passes_in_s = max(self._free_at, now - saved_s) + place.size / self.bytes_per_s - now
            if passes_in_s > _EXACT_S or not self._places.is_first(place):
                return max(passes_in_s, LEAST_WAIT_S)
        self._places.take(place)
        self.wait_s(place.size, now)
        return 0.0

    def leave(self, place: Place) -> None:
        """It does not want to pass any more; nothing to do if it has."""
        self._places.leave(place)

    def wait_s(self, size: int, now: float) -> float:
        """Book so many bytes; how long from `now` (seconds) they have to wait."""
        self.total_bytes += size
        if not self.bytes_per_s:
            return 0.0
        saved_s = self.burst_bytes / self.bytes_per_s
        self._free_at = max(self._free_at, now - saved_s) + size / self.bytes_per_s
        return max(0.0, self._free_at - now)

    def pass_by(self, size: int, now: float) -> None:
        """Book a small message, which does not wait."""
        self.wait_s(size, now)


class Line:
    """Both directions of a peer's line, as far as its streams to other peers go."""

    def __init__(self, upload_bytes_per_s: float = 0.0, download_bytes_per_s: float = 0.0) -> None:
        self.up, self.down = LineCap(upload_bytes_per_s), LineCap(download_bytes_per_s)

    @property
    def bytes_per_s(self) -> float:
        """The narrower cap; 0 where there is none."""
        return min((cap.bytes_per_s for cap in (self.up, self.down) if cap.bytes_per_s), default=0.0)

    @property
    def total_bytes(self) -> int:
        """All that has passed, both ways."""
        return self.up.total_bytes + self.down.total_bytes
