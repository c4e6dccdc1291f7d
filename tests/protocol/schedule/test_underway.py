"""An iteration that is under way: continued it is the forecast, and a loss costs what the protocol's repair costs.

By hand, alone on one stage peer (`test_pipeline_model`): embedding 0-1, there at 5, forward 5-8, back at 12, loss 12-14, there
at 18, backward 18-24, back at 28, finish 29. A transfer takes 4, the last 2 of which its bytes are on the way.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from gwtf_p2p.protocol.schedule.first_paths import first_paths
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.model import Path, Pipeline, forecast
from gwtf_p2p.protocol.schedule.underway import Underway
from tests.protocol.flow.problems import Size, random_view
from tests.protocol.schedule.test_model import small


def without(pipeline: Pipeline, *gone: int) -> Pipeline:
    stages = tuple(tuple(i for i in peers if i not in gone) for peers in pipeline.stage_peers)
    return replace(pipeline, stage_peers=stages)


def drawn(seed: int) -> tuple[Pipeline, list[Path]]:
    figures, _ = figures_of(random_view(np.random.default_rng(seed), Size(stages=3, stage_peers=3, data_peers=2, capacity=2)))
    assert figures is not None
    pipeline = pipeline_of(figures)
    return pipeline, first_paths(pipeline)


@pytest.mark.parametrize("seed", range(4))
def test_continued_as_planned_it_is_the_forecast(seed: int) -> None:
    pipeline, paths = drawn(seed)
    whole = forecast(pipeline, paths)
    halfway = Underway.begun(pipeline, paths)
    for part in (0.2, 0.5, 0.5, 0.9, 1.1):
        halfway = halfway.later(paths, part * whole.makespan_us)
        assert halfway.forecast(paths) == whole


@pytest.mark.parametrize(
    ("at", "finish", "makespan"),
    [
        (0.5, 29, 29),  # not handed on yet: it goes to the other one
        (3, 31, 31),  # on its way there: sent anew
        (6, 34, 34),  # forward cut off
        (9, 37, 37),  # output on its way: broken off
        (11, 29, 29),  # output has left: the forward is redone (15-18) beside the loss
        (20, 42, 42),  # backward cut off: there 24, forward 27, gradient 31, backward 37, back 41
        (27, 29, 44),  # gradient has left: the stage is redone from 27 on, 4 + 3 + 4 + 6
        (60, 29, 77),  # all is over, until the stage has been redone
    ],
)
def test_a_loss_costs_what_has_to_be_done_again(at: float, finish: float, makespan: float) -> None:
    pipeline = small(stage_peers=2)
    left = Underway.begun(pipeline, [(0, 1)]).later([(0, 1)], at).changed(without(pipeline, 1), [(0, 2)])
    seen = left.forecast([(0, 2)])
    assert (seen.finish_us, seen.makespan_us) == ([finish], makespan)


def test_the_replacement_may_be_lost_too() -> None:
    """Redone by stage peer 2 from 30 on, which is lost at 40; by stage peer 3 from then on."""
    pipeline = small(stage_peers=3)
    first = Underway.begun(pipeline, [(0, 1)]).later([(0, 1)], 30).changed(without(pipeline, 1), [(0, 2)])
    second = first.later([(0, 2)], 40).changed(without(pipeline, 1, 2), [(0, 3)])
    assert second.forecast([(0, 3)]).makespan_us == 40 + 17


@pytest.mark.parametrize("seed", range(12))
def test_losses_and_returns_leave_nothing_behind(seed: int) -> None:
    """Whatever is lost when: every microbatch comes back, and no slot stays taken."""
    pipeline, paths = drawn(seed)
    random, length_us = Random(seed), forecast(pipeline, paths).makespan_us
    underway, gone, now_us = Underway.begun(pipeline, paths), list[int](), 0.0
    for _ in range(5):
        now_us += random.random() * 0.4 * length_us
        underway = underway.later(paths, now_us)
        stage = random.choice([peers for peers in pipeline.stage_peers[1:] if len(peers) > 1])
        gone = [stage_peer for stage_peer in gone if random.random() < 0.7]  # the others are back, without anything
        present = [stage_peer for stage_peer in stage if stage_peer not in gone]
        if len(present) > 1:
            gone.append(random.choice(present))
        able = without(pipeline, *gone)
        paths = [tuple(i if i not in gone else random.choice(able.stage_peers[k]) for k, i in enumerate(p)) for p in paths]
        underway = underway.changed(able, paths)
    end = underway.later(paths, 100 * length_us)
    assert all(finish_us > 0 for finish_us in end.forecast(paths).finish_us)
    stage_peers = [i for peers in end.run.pipeline.stage_peers[1:] for i in peers]
    assert [end.run.kept[i] for i in stage_peers] == [0] * len(stage_peers)
    assert not any(end.run.up) and not any(end.run.down) and not any(end.run.queues)
