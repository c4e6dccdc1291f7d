"""Step 1 of a plan (`search`): paths that come from prices, without forecasts of what waits for what; any size.

`first_paths`: microbatch after microbatch takes the way of least round trip plus price, where a stage peer's price is the time
for which its slots, or its device, are spoken for. That is exact for one microbatch, and says too much of those that come
later: they do not wait for all that a stage peer will do in the iteration, but for what happens to be there when they come.

`rerouted`: each microbatch in turn is taken off its path and given the best one again, with all others where they are, at a
part of that price (as wires are routed on a chip: McMurchie and Ebeling 1995, `PathFinder`). Which part is right depends on how
long stage peers stand idle between microbatches, so several are tried (`PARTS`), and whoever asks picks by forecast.

Of a very large stage each microbatch looks at a part (`mending.looked_at`), another for each: what a plan takes grows with the
microbatches, and not with their product with the pairs of peers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.schedule.from_view import ViewLinks
from gwtf_p2p.protocol.schedule.mending import LOOKED_AT, looked_at
from gwtf_p2p.protocol.schedule.model import UNLIMITED, Path, Pipeline
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S

Matrix = npt.NDArray[np.float64]

PARTS = (0.05, 0.15, 0.3)
"""Of a price. In a swarm of a thousand, 51 s of a forecast fall to 33.4, 33.2 and 33.8; at the whole price to 50 (measured)."""

ROUNDS = 2
"""In which every microbatch is rerouted once; of more, little comes."""


class _Way:
    """What a microbatch takes of each layer: its place there, the time its slot is held and its device busy."""

    __slots__ = ("busy_us", "held_us", "places")

    def __init__(self, places: list[int], held_us: list[float], busy_us: list[float]) -> None:
        self.places, self.held_us, self.busy_us = places, held_us, busy_us


class _Ways:
    """All stage peers with what is spoken for, and the cheapest way through them. Ties to the lowest number."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.layers = [tuple(peer for peer, _ in pipeline.demand), *pipeline.stage_peers[1:]]
        ends = pairwise([*self.layers, self.layers[0]])
        self._hops_us = [there_and_back_us(pipeline, k, a, b) for k, (a, b) in enumerate(ends)]
        self._work_us = [np.array([_work_us(pipeline, i) for i in layer]) for layer in self.layers]
        waits, slots = pipeline.waits_for_slots, pipeline.slots
        self._slots = [np.array([float(slots[i] if waits(i) else UNLIMITED) for i in layer]) for layer in self.layers]
        self._places = [range(len(layer)) for layer in self.layers]
        self._is_very_large = any(len(layer) > LOOKED_AT for layer in self.layers[1:])
        self._held_us, self._busy_us = ([np.zeros(len(layer)) for layer in self.layers] for _ in range(2))

    def cheapest(self, source: int, part: float, m: int) -> _Way:
        """From and to a data peer, by place, at a part of the prices; for microbatch number m."""
        prices = [
            work + part * np.maximum(held / slot, busy)
            for work, held, slot, busy in zip(self._work_us, self._held_us, self._slots, self._busy_us, strict=True)
        ]
        if not self._is_very_large:
            return self.along(source, _cheapest_way(self._hops_us, prices, source))
        looked = [np.array([source]), *(np.array(looked_at(places, m + k)) for k, places in enumerate(self._places[1:], 1))]
        hops_us = [hop[np.ix_(a, b)] for hop, (a, b) in zip(self._hops_us, pairwise([*looked, looked[0]]), strict=True)]
        chosen = _cheapest_way(hops_us, [price[at] for price, at in zip(prices, looked, strict=True)], 0)
        return self.along(source, [int(at[i]) for at, i in zip(looked[1:], chosen, strict=True)])

    def along(self, source: int, places: list[int]) -> _Way:
        """What a microbatch takes of the places in layers 1..S."""
        hops_us, work_us = self._hops_us, self._work_us
        away_us = self._pipeline.loss_us[self.layers[0][source]] + float(hops_us[-1][places[-1], source])
        held_us, busy_us = [0.0] * len(places), [0.0] * len(places)
        for k in range(len(places), 0, -1):
            place = places[k - 1]
            busy_us[k - 1] = float(work_us[k][place])
            away_us += busy_us[k - 1]
            held_us[k - 1] = away_us
            away_us += float(hops_us[k - 1][places[k - 2] if k > 1 else source, place])
        return _Way(places, held_us, busy_us)

    def change(self, way: _Way, sign: int) -> None:
        """Speak for what it takes (1), or give it back (-1)."""
        for k, (place, held, busy) in enumerate(zip(way.places, way.held_us, way.busy_us, strict=True), start=1):
            self._held_us[k][place] += sign * held
            self._busy_us[k][place] += sign * busy

    def path(self, source: int, way: _Way) -> Path:
        return (self.layers[0][source], *(self.layers[k][i] for k, i in enumerate(way.places, start=1)))


def first_paths(pipeline: Pipeline) -> list[Path]:
    """Data peers in turn, at the whole price."""
    ways = _Ways(pipeline)
    paths: list[Path] = []
    for m, source in enumerate(_in_turn(pipeline)):
        way = ways.cheapest(source, 1.0, m)
        ways.change(way, 1)
        paths.append(ways.path(source, way))
    return paths


def rerouted(pipeline: Pipeline, paths: Sequence[Path], seed: int) -> Iterator[list[Path]]:
    """These paths after `ROUNDS` at each of `PARTS` of the price."""
    number = [{i: place for place, i in enumerate(layer)} for layer in _Ways(pipeline).layers]
    for part in PARTS:
        ways, random = _Ways(pipeline), Random(seed)
        sources = [number[0][path[0]] for path in paths]
        now = [ways.along(at, [number[k][i] for k, i in enumerate(p[1:], 1)]) for at, p in zip(sources, paths, strict=True)]
        for way in now:
            ways.change(way, 1)
        for _ in range(ROUNDS):
            for m in random.sample(range(len(now)), len(now)):
                ways.change(now[m], -1)
                now[m] = ways.cheapest(sources[m], part, m)
                ways.change(now[m], 1)
        yield [ways.path(source, way) for source, way in zip(sources, now, strict=True)]


def _work_us(pipeline: Pipeline, peer: int) -> float:
    """Device time of one microbatch; a stage peer that recomputes is taken to compute each forward twice."""
    return pipeline.before_us[peer] * (1 if pipeline.waits_for_slots(peer) else 2) + pipeline.after_us[peer]


def _in_turn(pipeline: Pipeline) -> list[int]:
    """Data peers by place, as often as they have microbatches, in turn."""
    rounds = max((count for _, count in pipeline.demand), default=0)
    return [d for turn in range(rounds) for d, (_, count) in enumerate(pipeline.demand) if turn < count]


def there_and_back_us(pipeline: Pipeline, k: int, above: Sequence[int], below: Sequence[int]) -> Matrix:
    """`Pipeline.there_and_back_us` of every peer above (rows) and below."""
    links = pipeline.links
    if not isinstance(links, ViewLinks):
        return np.array([[pipeline.there_and_back_us(k, i, j) for j in below] for i in above])
    # Most pairs of a large swarm are not measured: computed at once, they take a fraction of the time.
    ours, theirs = ([links.usual(i) for i in side] for side in (above, below))
    slower = np.minimum.outer(*([usual.bandwidth_bytes_per_s for usual in side] for side in (ours, theirs)))
    slower[np.isinf(slower)] = ASSUMED_BANDWIDTH_BYTES_PER_S
    latency_s = np.add.outer(*([usual.latency_s for usual in side] for side in (ours, theirs))) / 2
    mean_bytes = (pipeline.hops.forth(k) + pipeline.hops.back(k)) / 2
    both: Matrix = 2 * MICROSECONDS * (latency_s + mean_bytes / slower)
    for i, j in links.measured(above, below):
        both[i, j] = pipeline.there_and_back_us(k, above[i], below[j])
    return both


def _cheapest_way(hops_us: Sequence[Matrix], prices: Sequence[Matrix], source: int) -> list[int]:
    """Places in layers 1..S of the cheapest round trip from and to place `source` of layer 0."""
    cost_us = hops_us[0][source] + prices[1]
    came_from: list[npt.NDArray[np.intp]] = []
    for hop_us, price in zip(hops_us[1:-1], prices[2:], strict=True):
        through = cost_us[:, None] + hop_us
        came_from.append(through.argmin(axis=0))
        cost_us = through.min(axis=0) + price
    place = int((cost_us + hops_us[-1][:, source]).argmin())
    places = [place]
    for above in reversed(came_from):
        place = int(above[place])
        places.append(place)
    return places[::-1]
