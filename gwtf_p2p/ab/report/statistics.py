"""Medians with intervals, over seeds; ratios are paired by seed.

An interval of the report is of order statistics: it takes no distribution for granted, and what it covers is exact. Five seeds
cannot give 95 %: the widest interval that they have, from the least to the greatest, covers the median in 94 of 100 cases, that
of three in 75; it is told with the interval. Fewer than three seeds give none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

import numpy as np

from gwtf_p2p.ab.trials.arms import best_swarm, wire_of
from gwtf_p2p.ab.trials.result import RunResult

DRAWS = 10_000
WANTED = 0.95
FEWEST_SEEDS = 3
"""Two values have a range, which covers their median in half of all cases: that is no interval."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    numbers = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(numbers), (DRAWS, len(numbers)))
    low, high = np.percentile(np.median(numbers[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Interval:
    """`covers`: the probability with which an interval made in this way holds the true median."""

    low: float
    high: float
    covers: float


def exact_interval(values: Sequence[float]) -> Interval | None:
    """The narrowest interval of two of the values that covers the median with 95 %, or the widest that there is.

    None under three values. (The number of values below the true median is binomial with one half.)
    """
    count = len(values)
    if count < FEWEST_SEEDS:
        return None
    ordered = sorted(values)
    outside = 1
    while outside < (count + 1) // 2 and _covers(count, outside + 1) >= WANTED:
        outside += 1
    return Interval(ordered[outside - 1], ordered[count - outside], _covers(count, outside))


def _covers(count: int, outside: int) -> float:
    """From the `outside`-th least to the `outside`-th greatest of `count` values."""
    return 1.0 - float(sum(comb(count, k) for k in range(outside))) * 2.0 ** (1 - count)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median over seeds, and its interval where there are seeds enough for one."""

    middle: float
    interval: Interval | None
    values: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float]) -> Estimate:
        told = tuple(values)
        return Estimate(float(median(told)), exact_interval(told), told)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm in one scenario and backend. `ratio`: its iterations over the baseline's of the same seeds."""

    scenario: str
    backend: str
    arm: str
    baseline: str | None
    runs: tuple[RunResult, ...]
    iteration_s: Estimate
    ratio: Estimate | None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def middle(self, of: Callable[[RunResult], float]) -> float:
        return float(median(of(run) for run in self.runs))


def summaries(results: Sequence[RunResult]) -> list[ArmSummary]:
    """Per scenario and backend, in the order in which they were first run; the baseline is the SWARM arm of least median
    iteration among those of the same format (so SWARM is given its best, chosen on the same seeds, which is in its favour)."""
    found: list[ArmSummary] = []
    for backend, scenario in dict.fromkeys((r.backend, r.scenario) for r in results):
        arms: dict[str, dict[int, RunResult]] = {}
        for result in results:
            if (result.backend, result.scenario) == (backend, scenario):
                arms.setdefault(result.arm, {})[result.seed] = result
        medians = [(arm, median(r.mean_iteration_s for r in runs.values())) for arm, runs in arms.items()]
        found += [_summary(scenario, backend, arm, best_swarm(medians, wire_of(arm)), arms) for arm in arms]
    return found


def _summary(scenario: str, backend: str, arm: str, best: str | None, arms: dict[str, dict[int, RunResult]]) -> ArmSummary:
    runs = arms[arm]
    base = arms[best] if best is not None else {}
    common = sorted(set(runs) & set(base))
    ratios = [runs[seed].mean_iteration_s / base[seed].mean_iteration_s for seed in common]
    return ArmSummary(
        scenario=scenario,
        backend=backend,
        arm=arm,
        baseline=best,
        runs=tuple(runs[seed] for seed in sorted(runs)),
        iteration_s=Estimate.of(runs[seed].mean_iteration_s for seed in sorted(runs)),
        ratio=Estimate.of(ratios) if ratios else None,
    )
