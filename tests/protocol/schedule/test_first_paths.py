"""Paths by prices: valid, equal for equal pipelines, and of a large swarm far better once they are rerouted."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.schedule.first_paths import PARTS, first_paths, rerouted
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
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
