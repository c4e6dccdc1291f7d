"""Local moves on a list of paths: what a search may try next.

- *change*: another stage peer in one stage of one path;
- *exchange*: two paths exchange one stage peer, or everything from a stage on (swap tails);
- *reorder*: two paths change places, so that another microbatch goes first.

None changes how many microbatches a data peer has. Guided moves start where a forecast says that late microbatches wait: a
microbatch that waits, or one of those that it waits with, goes elsewhere or exchanges with one that passes elsewhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from gwtf_p2p.protocol.schedule.load_estimate import Change
from gwtf_p2p.protocol.schedule.model import Forecast, Path, Pipeline

_LEAST_WAIT_US = 1000.0
"""Weight of a place where nobody waits: guided moves should not be blind elsewhere."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Parts of the kinds of moves; the rest are changes anywhere."""

    guided: float
    exchange: float
    reorder: float


BALANCING = Mix(guided=0.0, exchange=0.4, reorder=0.0)
"""For `Load`, which knows neither waits nor order."""

SCHEDULING = Mix(guided=0.5, exchange=0.15, reorder=0.25)
"""For forecasts. Measured: without guided moves a search of 500 forecasts ends 1.5 % later."""


class Moves:
    """Proposes moves. `random` makes it deterministic."""

    def __init__(self, pipeline: Pipeline, random: Random) -> None:
        self._pipeline, self._random = pipeline, random
        self._waits: list[float] = []

    def observe(self, forecast: Forecast) -> None:
        """Guide the next moves by the waits of this forecast, those of late microbatches above all."""
        stages = self._pipeline.stages
        weights: list[float] = []
        for m, finish_us in enumerate(forecast.finish_us):
            late = finish_us / forecast.makespan_us
            late *= late
            late *= late
            weights += [wait * late + _LEAST_WAIT_US for wait in forecast.wait_us[m * stages : (m + 1) * stages]]
        self._waits = list(accumulate(weights))

    def propose(self, paths: Sequence[Path], mix: Mix) -> list[Change]:
        """A move, or an empty list when the draw leads to none."""
        kind = self._random.random()
        if kind < mix.guided and self._waits:
            return self._guided(paths)
        a = self._below(len(paths))
        if kind < mix.guided + mix.exchange:
            return self._exchange(paths, a, self._below(len(paths)), 1 + self._below(self._pipeline.stages))
        if kind < mix.guided + mix.exchange + mix.reorder:
            b = self._below(len(paths))
            return [] if paths[a] == paths[b] else [(a, paths[b]), (b, paths[a])]
        return self._change(paths, a, 1 + self._below(self._pipeline.stages))

    def _guided(self, paths: Sequence[Path]) -> list[Change]:
        place = min(bisect_left(self._waits, self._random.random() * self._waits[-1]), len(self._waits) - 1)
        m, stage = divmod(place, self._pipeline.stages)
        stage += 1
        stage_peer = paths[m][stage]
        if self._random.random() < 0.5:
            m = self._one_of([other for other, path in enumerate(paths) if path[stage] == stage_peer])
        if self._random.random() < 0.6:
            return self._change(paths, m, stage)
        elsewhere = [other for other, path in enumerate(paths) if path[stage] != stage_peer]
        return self._exchange(paths, m, self._one_of(elsewhere), stage) if elsewhere else []

    def _change(self, paths: Sequence[Path], m: int, stage: int) -> list[Change]:
        path, stage_peer = paths[m], self._one_of(self._pipeline.stage_peers[stage])
        return [] if stage_peer == path[stage] else [(m, (*path[:stage], stage_peer, *path[stage + 1 :]))]

    def _exchange(self, paths: Sequence[Path], a: int, b: int, stage: int) -> list[Change]:
        first, second = paths[a], paths[b]
        end = stage + 1 if self._random.random() < 0.5 else len(first)
        mine, others = first[stage:end], second[stage:end]
        if mine == others or (first[0] == second[0] and first[:stage] == second[:stage] and first[end:] == second[end:]):
            return []
        return [(a, first[:stage] + others + first[end:]), (b, second[:stage] + mine + second[end:])]

    def _below(self, count: int) -> int:
        return int(self._random.random() * count)

    def _one_of(self, numbers: Sequence[int]) -> int:
        return numbers[self._below(len(numbers))]
