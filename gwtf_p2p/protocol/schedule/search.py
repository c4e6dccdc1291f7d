"""Plans an iteration: paths for the microbatches of all data peers together, and when each leaves its data peer.

**Problem.** Given a `Pipeline`, choose a path for every microbatch and an order, so that the forecast makespan (the time until
all gradients are back at all data peers) is least. It is a job shop with machine choice and blocking, NP-hard; this is a local
search in three steps, each starting from the last:

1. `first_paths`: microbatch after microbatch takes the way of least round trip plus price, where a stage peer's price is the
time
   for which its slots are already spoken for. Exact for one microbatch; any size.
2. Balance: moves that lower `planner_load.Load`, thousands of them.
3. Schedule: moves scored by a forecast; of two candidates the one of the lower load is forecast. Better ones are kept, and
   slightly worse ones early on (threshold accepting: Dueck and Scheuer 1990), where the paper anneals.

Step 3 may go on later from the paths of an earlier plan. Effort is counted (`Effort`), never measured, and random numbers come
from a seed: equal pipelines, paths, effort and seed give equal plans. Large swarms get fewer forecasts, in the end none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.schedule.from_view import ViewLinks
from gwtf_p2p.protocol.schedule.load_estimate import Change, Load
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS
from gwtf_p2p.protocol.schedule.model import UNLIMITED, Forecast, Path, Pipeline, forecast
from gwtf_p2p.protocol.schedule.search_moves import BALANCING, SCHEDULING, Moves
from gwtf_p2p.protocol.schedule.underway import Underway
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S

Matrix = npt.NDArray[np.float64]

BALANCE_TOLERANCE = 0.16
"""As `TOLERANCE`, for loads: these are sums of eighth powers, so it is 2 % of a time."""

TOLERANCE = 0.003
"""A move that is worse by less than this part is kept at the start of a search; the part falls to 0 at its end."""

CANDIDATES = 2
"""Moves per forecast, of which the one of the least load is tried. More would trust the load too much (measured)."""

EARLINESS = 0.5
"""Weight of the mean finish in a score beside the makespan: it leads towards plans with slack where the makespan is flat."""

LEAST_FORECASTS = 0.25
"""For each microbatch of a large swarm (`MANY_PEERS`): with fewer, a search moves too few of them to be worth its time."""

MOST_DRAWS = 20
"""Draws of moves per forecast in all, before a search gives up: small problems have few different plans."""


NOTICE_S = 2.0
"""Until a revised plan has come to those who are to follow it."""


@dataclass(frozen=True, slots=True)
class Effort:
    """`steps`: moves of step 2. `computations`: of step 3, computations in all forecasts together; 400,000 take about 1 s."""

    steps: int
    computations: int


@dataclass(frozen=True, slots=True)
class Planned:
    """Paths in the order in which they are released, and what they are forecast to do."""

    paths: tuple[Path, ...]
    forecast: Forecast


def plan_iteration(pipeline: Pipeline, first: Planned, effort: Effort, seed: int) -> Planned:
    """The best paths found from the first that come to hand. Never worse than these, by the score of `schedule`."""
    random = Random(seed)
    balanced = foreseen(pipeline, balance(pipeline, first.paths, effort.steps, random))
    start = min((first, balanced), key=lambda candidate: score_of(candidate.forecast))
    return schedule(pipeline, start, effort.computations, random)


def foreseen(pipeline: Pipeline, paths: Sequence[Path]) -> Planned:
    """These paths, with what they are forecast to do."""
    return Planned(tuple(paths), forecast(pipeline, paths))


# ---- step 1


def first_paths(pipeline: Pipeline) -> list[Path]:
    """Data peers in turn. A stage peer's price: until when its slots, or its device, are spoken for. Ties to the lowest
    number."""
    layers = [tuple(peer for peer, _ in pipeline.demand), *pipeline.stage_peers[1:]]
    hops_us = [there_and_back_us(pipeline, k, a, b) for k, (a, b) in enumerate(pairwise([*layers, layers[0]]))]
    work_us = [np.array([_work_us(pipeline, i) for i in layer]) for layer in layers]
    waits = pipeline.waits_for_slots
    slots = [np.array([float(pipeline.slots[i] if waits(i) else UNLIMITED) for i in layer]) for layer in layers]
    held_us, busy_us = ([np.zeros(len(layer)) for layer in layers] for _ in range(2))
    paths: list[Path] = []
    for source in _in_turn(pipeline):
        prices = [
            work + np.maximum(held / slot, busy)
            for work, held, slot, busy in zip(work_us, held_us, slots, busy_us, strict=True)
        ]
        places = _cheapest_way(hops_us, prices, source)
        away_us = pipeline.loss_us[layers[0][source]] + float(hops_us[-1][places[-1], source])
        for k in range(len(places), 0, -1):
            place = places[k - 1]
            away_us += float(work_us[k][place])
            held_us[k][place] += away_us
            busy_us[k][place] += work_us[k][place]
            away_us += float(hops_us[k - 1][places[k - 2] if k > 1 else source, place])
        paths.append((layers[0][source], *(layers[k][i] for k, i in enumerate(places, start=1))))
    return paths


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


# ---- step 2


def balance(pipeline: Pipeline, paths: Sequence[Path], steps: int, random: Random) -> list[Path]:
    """Lower the load of `paths`; the best paths seen."""
    now, moves = list(paths), Moves(pipeline, random)
    load = Load(pipeline, now)
    best, best_total = list(now), load.total
    for step in range(steps):
        changes = moves.propose(now, BALANCING)
        if not changes:
            continue
        former = load.total
        undo = load.change(changes)
        if load.total > former * (1 + BALANCE_TOLERANCE * (1 - step / steps)):
            load.undo(undo)
            continue
        for m, path in changes:
            now[m] = path
        if load.total < best_total:
            best, best_total = list(now), load.total
    return best


# ---- step 3


def schedule(
    pipeline: Pipeline, start: Planned, computations: int, random: Random, underway: Underway | None = None
) -> Planned:
    """Lower the score of the forecast: makespan and a little of the mean finish. The best paths seen.

    Of an iteration that is `underway`, only what is still to come is changed. Large swarms whose forecasts take so long that
    there would be few of them for their many microbatches stay with what they have.
    """
    forecasts = computations // max(1, len(start.paths) * (2 * pipeline.stages + 3))
    if len(pipeline.peers) >= MANY_PEERS and forecasts < LEAST_FORECASTS * len(start.paths):
        return start
    look = underway.forecast if underway is not None else partial(forecast, pipeline)
    now, moves = list(start.paths), Moves(pipeline, random)
    load = Load(pipeline, now)
    seen_at, best = start.forecast, start
    score = best_score = score_of(seen_at)
    moves.observe(seen_at)
    tried = {tuple(now)}
    offered_us = seen_at.offered_us
    drawn = made = 0
    while made < forecasts and drawn < forecasts * MOST_DRAWS:
        drawn += CANDIDATES
        changes = _least_loading(load, [moves.propose(now, SCHEDULING) for _ in range(CANDIDATES)])
        trial = list(now)
        for m, path in changes:
            trial[m] = path
        if tuple(trial) in tried or (underway is not None and _is_too_late(changes, now, offered_us, underway)):
            continue
        tried.add(tuple(trial))
        made += 1
        seen = look(trial)
        trial_score = score_of(seen)
        if trial_score > score * (1 + TOLERANCE * (1 - made / forecasts)):
            continue
        load.change(changes)
        now, score = trial, trial_score
        moves.observe(seen)
        offered_us = seen.offered_us
        if score < best_score:
            best, best_score = Planned(tuple(now), seen), score
    return best


def _is_too_late(
    changes: Sequence[Change], paths: Sequence[Path], offered_us: Sequence[Sequence[float]], underway: Underway
) -> bool:
    """Does a move change what has happened already, or will have before those that hand on the microbatch know?

    A data peer, which hands on to the first stage, knows at once."""
    noticed_us = underway.at_us + NOTICE_S * MICROSECONDS
    return any(
        path[0] != paths[m][0]
        or any(
            new != old and (underway.is_handed_to(m, k) or (k > 1 and offered_us[m][k] <= noticed_us))
            for k, (new, old) in enumerate(zip(path, paths[m], strict=True))
        )
        for m, path in changes
    )


def score_of(seen: Forecast) -> float:
    return seen.makespan_us + EARLINESS * seen.mean_finish_us


def _least_loading(load: Load, candidates: Sequence[list[Change]]) -> list[Change]:
    """The first of those with the least load; no move when all are empty."""
    real = [changes for changes in candidates if changes]
    return min(real, key=load.value_of) if real else []
