"""Paths by prices: valid, equal for equal pipelines, and of a large swarm far better once they are rerouted."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.schedule.first_paths import PARTS, first_paths, rerouted
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.mending import LOOKED_AT, looked_at
from gwtf_p2p.protocol.schedule.model import Pipeline
from gwtf_p2p.protocol.schedule.search import Effort, foreseen, plan_iteration, score_of
from tests.exploring import examples
from tests.protocol.flow.problems import Size, random_view

NO_SEARCH = Effort(steps=0, computations=0)


def pipeline_for(seed: int, size: Size) -> Pipeline:
    figures, why = figures_of(random_view(np.random.default_rng(seed), size))
    assert figures is not None, why
    return pipeline_of(figures)


@examples(10)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_every_microbatch_keeps_its_data_peer_and_passes_each_stage_once(seed: int, stages: int) -> None:
    pipeline = pipeline_for(seed, Size(stages=stages, stage_peers=3, data_peers=2, demand=3))
    first = first_paths(pipeline)
    found = list(rerouted(pipeline, first, seed))
    assert len(found) == len(PARTS)
    for paths in (first, *found):
        assert Counter(path[0] for path in paths) == dict(pipeline.demand)
        assert all(stage_peer in pipeline.stage_peers[k] for path in paths for k, stage_peer in enumerate(path))
        assert all(len(path) == stages + 1 for path in paths)
    assert [path[0] for path in found[0]] == [path[0] for path in first]
    assert found == list(rerouted(pipeline, first, seed)), "the same for all peers that see the same"
    best = plan_iteration(pipeline, foreseen(pipeline, first), NO_SEARCH, seed)
    assert score_of(best.forecast) <= min(score_of(foreseen(pipeline, paths).forecast) for paths in (first, *found))


def test_a_swarm_that_is_too_large_to_be_searched_is_rerouted() -> None:
    """Whole prices send microbatches far out of the way of others that they would hardly have met."""
    gained = []
    for seed in range(3):
        pipeline = pipeline_for(seed, Size(stages=8, stage_peers=25, data_peers=6, demand=8))
        first = foreseen(pipeline, first_paths(pipeline))
        best = plan_iteration(pipeline, first, NO_SEARCH, seed)
        gained.append(score_of(best.forecast) / score_of(first.forecast))
    assert sum(gained) / len(gained) < 0.98, gained


def test_of_a_very_large_stage_each_microbatch_looks_at_a_part_and_the_plan_is_hardly_worse() -> None:
    """The parts are others for each, so all of a stage is used; what is left out is made up for by the many that are there."""
    pipeline = pipeline_for(0, Size(stages=2, stage_peers=3 * LOOKED_AT, data_peers=3, demand=20))
    first = first_paths(pipeline)
    for paths in (first, *rerouted(pipeline, first, 0)):
        for m, path in enumerate(paths):
            for k, stage_peer in enumerate(path[1:], start=1):
                assert stage_peer in looked_at(pipeline.stage_peers[k], m + k)
    least = [min(path_us(pipeline, (first[0][0], i, j)) for i in pipeline.stage_peers[1] for j in pipeline.stage_peers[2])]
    assert path_us(pipeline, first[0]) < 1.3 * least[0]


def path_us(pipeline: Pipeline, path: tuple[int, ...]) -> float:
    """Of a microbatch that is alone."""
    hops = zip(path, (*path[1:], path[0]), strict=True)
    return sum(pipeline.there_and_back_us(k, a, b) for k, (a, b) in enumerate(hops)) + sum(
        pipeline.before_us[i] + pipeline.after_us[i] for i in path[1:]
    )
