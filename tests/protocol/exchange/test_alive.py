"""A sign of life is its owner's, and of no other moment."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.exchange.alive import MOST_SIGNS, follows, sign_of_life

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize(("known", "index"), [(0, 1), (0, 7), (3, 4), (100, MOST_SIGNS)])
def test_a_sign_is_checked_against_any_that_was_told_before(known: int, index: int) -> None:
    assert follows(sign_of_life(SECRET, index), sign_of_life(SECRET, known), index - known)


@pytest.mark.parametrize("steps", [-1, 0, 2, MOST_SIGNS + 1])
def test_it_says_nothing_of_another_moment(steps: int) -> None:
    assert not follows(sign_of_life(SECRET, 5), sign_of_life(SECRET, 4), steps)


def test_nobody_makes_one_from_those_that_were_told() -> None:
    told = sign_of_life(SECRET, 4)
    assert not follows(told, told, 1)
    assert not follows(b"another secret!!", told, 1)
    assert not follows(told[:15], sign_of_life(SECRET, 3), 1)
