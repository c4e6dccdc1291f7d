"""Plans an iteration: paths for the microbatches of all data peers together, and when each leaves its data peer.

**Problem.** Given a `Pipeline`, choose a path for every microbatch and an order, so that the forecast makespan (the time until
all gradients are back at all data peers) is least. It is a job shop with machine choice and blocking, NP-hard; this is a local
search in three steps, each starting from the last:

1. `first_paths` and `rerouted` (`schedule/first_paths`): paths by prices.
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
from random import Random

from gwtf_p2p.protocol.schedule.first_paths import rerouted
from gwtf_p2p.protocol.schedule.load_estimate import Change, Load
from gwtf_p2p.protocol.schedule.mending import MANY_PEERS
from gwtf_p2p.protocol.schedule.model import Forecast, Path, Pipeline, forecast
from gwtf_p2p.protocol.schedule.search_moves import BALANCING, SCHEDULING, Moves
from gwtf_p2p.protocol.schedule.underway import Underway
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS

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
    others = [balance(pipeline, first.paths, effort.steps, random), *rerouted(pipeline, first.paths, seed)]
    start = min((first, *(foreseen(pipeline, paths) for paths in others)), key=lambda candidate: score_of(candidate.forecast))
    return schedule(pipeline, start, effort.computations, random)


def foreseen(pipeline: Pipeline, paths: Sequence[Path]) -> Planned:
    """These paths, with what they are forecast to do."""
    return Planned(tuple(paths), forecast(pipeline, paths))


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
