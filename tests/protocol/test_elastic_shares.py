"""Shares by pace: the whole iteration stays as large, nobody's share leaves its bounds, and who is faster never has less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.elastic_shares import bounds_of, elastic_shares, wrong_in
from tests.exploring import examples

PACES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9)


@examples(100)
@given(PACES, st.integers(1, 300))
def test_shares_are_whole_bounded_and_sum_up_and_follow_the_paces(paces: list[float], microbatches: int) -> None:
    shares = elastic_shares(paces, microbatches)
    assert wrong_in(shares, len(paces), microbatches) == "" and sum(shares) == microbatches * len(paces)
    for pace, share in zip(paces, shares, strict=True):
        assert all(share >= other_share - 1 for other, other_share in zip(paces, shares, strict=True) if pace >= other)


@pytest.mark.parametrize(
    ("paces", "microbatches", "shares"),
    [
        ([1.0, 2.0], 8, (5, 11)),
        ([2.0, 1.0], 8, (11, 5)),
        ([1.0, 1000.0], 8, (4, 12)),
        ([3.0, 3.0, 3.0], 5, (5, 5, 5)),
        ([1.0, 9.0], 1, (1, 1)),
        ([1.0, 1.0, 4.0], 4, (3, 3, 6)),
    ],
    ids=["twice the pace", "the other way round", "bounds", "equal", "one microbatch each", "the rest is shared"],
)
def test_who_is_twice_as_fast_has_about_twice_as_much(paces: list[float], microbatches: int, shares: tuple[int, ...]) -> None:
    assert elastic_shares(paces, microbatches) == shares


def test_a_run_that_states_shares_outside_the_bounds_or_of_another_sum_is_told_what_was_expected() -> None:
    assert bounds_of(8) == (4, 12) and bounds_of(1) == (1, 1) and bounds_of(3) == (2, 4)
    assert wrong_in((), 2, 8) == wrong_in((4, 12), 2, 8) == ""
    for wrong in ((3, 13), (8, 9), (16,), (5, 5, 6)):
        assert wrong_in(wrong, 2, 8) == f"expected 2 numbers from 4 to 12 with the sum 16, got {list(wrong)}"
