"""Trying again what has failed for a lasting reason: each time after twice as long as the time before."""

from __future__ import annotations


class Backoff:
    """When something may be tried again. It may at once, until it has failed."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._pause_s = 0.0
        self._not_before = 0.0

    def may_try(self, now: float) -> bool:
        """Whether the pause since the last failure is over."""
        return not self._pause_s or now >= self._not_before

    def failed(self, now: float) -> float:
        """It has failed (again); returns the seconds until it may be tried."""
        self._pause_s = min(2 * self._pause_s, self._most_s) if self._pause_s else self._first_s
        self._not_before = now + self._pause_s
        return self._pause_s

    def succeeded(self) -> None:
        """Whatever stood in the way is gone."""
        self._pause_s = 0.0
