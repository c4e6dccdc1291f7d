"""How large a part of an average may be: nobody is refused for honest growth, nor for what a neighbour brings."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.magnitudes import FACTOR, LEAST, WINDOW
from gwtf_p2p.protocol.trust.parts import RESULT_FACTOR, PartBound, PartSizes

H, M = PeerId("honest"), PeerId("multiplies")
FAR = 2 * FACTOR


def known(*members: PeerId, size: float = 1.0) -> PartSizes:
    """These have averaged for a while."""
    sizes = PartSizes()
    for _ in range(LEAST):
        sizes.note("whole", dict.fromkeys(members, size))
    return sizes


def test_one_that_multiplies_is_refused_by_what_the_others_bring_from_the_first_average_on() -> None:
    bound = PartSizes().bound("whole", 1.0, 3)
    assert "2e+04 times as large as usual" in bound.part(FAR, [1.0, 1.0])
    assert not bound.part(FACTOR, [1.0, 1.0]) and bound.part(math.inf, [1.0, 1.0])


def test_no_neighbour_of_one_that_multiplies_or_brings_next_to_nothing_is_refused() -> None:
    bound = PartSizes().bound("whole", 1.0, 3)
    for other in (FAR, 1e-30, 0.0):
        assert not bound.part(1.0, [1.0, other])
    idle = PartSizes().bound("whole", 0.0, 4)
    assert not idle.part(1.0, [1.0, 1.0, 1e-30]), "one of the others is one of several"


def test_where_two_contribute_the_past_decides_and_one_alone_is_not_judged() -> None:
    new, seen = PartSizes(), known(H, M)
    assert not new.bound("whole", 1.0, 2).part(FAR, [1.0]), "nothing is known yet: either may be the wrong one"
    assert seen.bound("whole", 1.0, 2).part(FAR, [1.0])
    assert not seen.bound("whole", FAR, 2).part(FAR, [FAR]), "both have grown"
    assert not seen.bound("whole", 0.0, 2).part(FAR, [FAR]), "also for one that brings nothing itself"
    assert not seen.bound("whole", 0.0, 1).part(1e30, [])
    assert not seen.bound("second", 1.0, 2).part(FAR, [1.0]), "each kind has a past of its own"


def test_a_member_cannot_move_the_bound_of_two_by_what_it_sends() -> None:
    sizes = known(H, M)
    for step in range(4 * WINDOW):
        size = FACTOR ** (step / WINDOW)
        refused = sizes.bound("whole", 1.0, 2).part(size, [1.0])
        sizes.note("whole", {H: 1.0, M: size})
    assert refused


@given(
    st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8),
    st.lists(st.floats(-2.0, 3.0), min_size=1, max_size=40),
    st.booleans(),
)
def test_nobody_is_refused_for_growth_that_all_take_part_in(spread: list[float], steps: list[float], brings: bool) -> None:
    """Members differ by up to 10,000 times, and all jump by up to a thousand from one average to the next."""
    members = [PeerId(str(number)) for number in range(len(spread))]
    sizes, level = PartSizes(), 1.0
    for step in steps:
        level *= 10.0**step
        brought = [each * level for each in spread]
        bound = sizes.bound("whole", brought[0] if brings else 0.0, len(members))
        for number, size in enumerate(brought[1:], start=1):
            assert not bound.part(size, [other for n, other in enumerate(brought) if n != number])
        assert not bound.result(sum(brought) / len(brought)) or not brings
        sizes.note("whole", dict(zip(members, brought, strict=True)))


def test_what_a_member_says_its_sum_is_has_more_room_than_a_part() -> None:
    bound = known(H, M).bound("whole", 1.0, 3)
    assert not bound.result(100 * FACTOR) and bound.result(2 * RESULT_FACTOR)
    assert not PartBound(None, 0.0, 5).result(math.inf), "nothing to compare with"
    assert not PartBound(None, 1.0, 2).result(2 * RESULT_FACTOR) and PartBound(None, 1.0, 3).result(2 * RESULT_FACTOR)


def test_one_that_brings_nothing_itself_refuses_no_honest_part_for_another_that_is_next_to_nothing() -> None:
    sizes = PartSizes()
    for _ in range(LEAST):
        sizes.note("whole", {H: 1.0, M: 1e-30})
    assert not sizes.bound("whole", 0.0, 2).part(1.0, [1e-30])
    assert sizes.bound("whole", 0.0, 2).part(FAR, [1e-30])


def test_one_that_is_alone_because_another_is_left_out_is_judged_by_the_past() -> None:
    """Else it would only have to accuse the other one to bring what it likes."""
    assert known(H, M).bound("whole", 1.0, 1 + 1).part(FAR, [])
