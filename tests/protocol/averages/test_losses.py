"""The mean loss of an iteration, without reports that no loss of this run can be."""

from __future__ import annotations

import math

import pytest

from gwtf_p2p.protocol.averages.losses import FACTOR, FLOOR, mean_loss
from gwtf_p2p.protocol.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_it_is_over_all_microbatches() -> None:
    assert mean_loss({A: (3, 2.0), B: (1, 6.0), C: (0, 1e9)}) == (3.0, {})
    assert mean_loss({}) == (0.0, {})


@pytest.mark.parametrize("loss", [math.nan, math.inf, -0.5, -1e30, 1e30, 2 * FACTOR * FLOOR])
def test_what_no_loss_can_be_is_left_out_and_told(loss: float) -> None:
    mean, refused = mean_loss({A: (1, 2.0), B: (1, 4.0), C: (2, loss)})
    assert mean == 3.0 and [*refused] == [C] and "loss" in refused[C]


def test_one_of_two_cannot_have_the_others_left_out() -> None:
    for lie in (1e30, -1.0, 0.0, math.nan):
        assert A not in mean_loss({A: (1, 3.0), C: (1, lie)})[1]


def test_a_run_that_diverges_is_told_as_it_is() -> None:
    assert mean_loss({A: (1, 1e6)}) == (1e6, {})
    assert mean_loss({A: (1, 1e6), B: (1, 3e6)}) == (2e6, {})
    assert mean_loss({A: (1, math.nan)})[0] == 0.0
