"""Deadlines from measured times: median + k * MAD, never a constant in a config (hivemind#676).

A deadline that passes is a suspicion, not a verdict: it leads to a question, and only silence makes a peer lost. So a short
deadline costs a small message and a long one costs time; before anything is measured a caller's prior is used.
"""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 32
"""Samples kept per key: enough for a median, few enough to follow a peer that slows down."""

DEVIATIONS = 6.0
"""k in median + k * MAD; 6 MAD is about 4 standard deviations of a normal distribution."""

LEAST_SPREAD = 0.25
"""MAD is taken as at least this part of the median: a few equal samples do not make a time certain."""

MINIMUM_SAMPLES = 3

LEAST_DEADLINE_S = 0.2
"""Asking more often than this costs more than it tells; also the guard against a wait of nothing."""


STEADY = 0.03
"""Of a median: what moves it by less is noise, for which planners should not begin anew."""


def steady(told: float, now: float, part: float) -> float:
    """The figure to tell: as it was told, until it has moved by more than this part of it."""
    return now if abs(now - told) > part * told else told


class Timings:
    """Recent durations by key: ("compute", work), ("push", peer), and waits such as ("complete", peer) or ("backward",)."""

    def __init__(self) -> None:
        self._samples: dict[tuple[object, ...], deque[float]] = {}
        self._deadlines: dict[tuple[object, ...], float] = {}
        self._told: dict[tuple[object, ...], float] = {}
        self._guesses: dict[tuple[object, ...], float] = {}

    def guess(self, key: tuple[object, ...], seconds: float) -> None:
        """What it may take, timed when nothing else was to be had: it stands until the first sample, and counts as none."""
        self._guesses[key] = seconds

    def observe(self, key: tuple[object, ...], seconds: float) -> None:
        self._samples.setdefault(key, deque(maxlen=WINDOW)).append(seconds)
        self._deadlines.pop(key, None)

    def count(self, key: tuple[object, ...]) -> int:
        return len(self._samples.get(key, ()))

    def median_s(self, key: tuple[object, ...]) -> float | None:
        """The guess while nothing is measured, None without one."""
        samples = self._samples.get(key)
        return median(samples) if samples else self._guesses.get(key)

    def steady_s(self, key: tuple[object, ...]) -> float | None:
        """For records: the median, as it was when it last moved by more than `STEADY`."""
        now = self.median_s(key)
        if now is not None:
            self._told[key] = steady(self._told.get(key, 0.0), now, STEADY)
        return self._told.get(key)

    def deadline_s(self, key: tuple[object, ...], prior_s: float) -> float:
        """How long to wait for `key` before asking; `prior_s` until there are three samples."""
        known = self._deadlines.get(key)
        if known is not None:
            return known
        samples = self._samples.get(key)
        if samples is None or len(samples) < MINIMUM_SAMPLES:
            return prior_s
        middle = median(samples)
        spread = median(abs(sample - middle) for sample in samples)
        deadline = max(LEAST_DEADLINE_S, float(middle + DEVIATIONS * max(spread, LEAST_SPREAD * middle)))
        self._deadlines[key] = deadline
        return deadline
