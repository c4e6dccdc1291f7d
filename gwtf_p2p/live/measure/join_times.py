"""How long each step of joining took, from the start of the peer to its first microbatch."""

from __future__ import annotations

import time
from collections.abc import Callable


class JoinTimes:
    """`mark` ends a step. Steps are named for what they give: p2pd, dht, run, weights, checkpoint, measured, online.

    `on_mark` hears of each, with the seconds that it took.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, on_mark: Callable[[str, float], None] = lambda step, seconds: None
    ) -> None:
        self._clock, self._on_mark = clock, on_mark
        self._began = self._last = clock()
        self.step_s: dict[str, float] = {}

    def mark(self, step: str) -> None:
        now = self._clock()
        self.step_s[step], self._last = round(now - self._last, 3), now
        self._on_mark(step, self.step_s[step])

    @property
    def seconds(self) -> float:
        """From the start to now."""
        return self._clock() - self._began

    def __str__(self) -> str:
        return ", ".join(f"{step} {seconds:.1f}" for step, seconds in self.step_s.items())
