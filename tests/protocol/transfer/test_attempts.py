"""The order of attempts of a microbatch: a repair further up outranks every repair further down."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.exploring import examples
from tests.protocol.peers import B2, A, B, C, D, in_step, microbatch

M = microbatch()
ATTEMPTS = st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple)


@examples(200)
@given(st.integers(0, 4), ATTEMPTS, ATTEMPTS, st.integers(0, 5), st.integers(0, 5))
def test_a_repair_further_up_outranks_every_repair_further_down(
    above: int, longer: tuple[int, ...], other: tuple[int, ...], one: int, two: int
) -> None:
    """Whatever the stages below a hand-over did, the later hand-over of the same peer wins; and so transitively."""
    head = tuple(range(above))
    size = max(len(longer), len(other))
    below, below_other = longer + (0,) * (size - len(longer)), other + (0,) * (size - len(other))
    if one != two:
        assert ((*head, one, *below) < (*head, two, *below_other)) == (one < two)


def test_each_hand_over_of_a_stage_peer_is_a_higher_attempt_than_the_one_before_and_one_longer_than_its_own() -> None:
    driven = in_step(A)
    first = driven.hands_on(M, D, (7, 0), (B, C)).message.attempt
    driven.loses(B)
    push = driven.pushed()
    assert push.to == B2
    assert first == (7, 0, 0) and first < push.message.attempt == (7, 0, 1)
