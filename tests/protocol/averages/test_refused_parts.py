"""Who is left out of an average for a part that was refused, and what an accuser gains by a lie: nothing."""

from __future__ import annotations

from gwtf_p2p.protocol.averages.refused_parts import LeftOut, RefusedParts
from gwtf_p2p.protocol.ids import PeerId, Stage

H, H2, M, M2 = PeerId("honest"), PeerId("honest_2"), PeerId("multiplies"), PeerId("multiplies_2")
D, IDLE = PeerId("leads"), PeerId("brings nothing")
ONE, TWO = Stage(1), Stage(2)


def left_out(*said: tuple[PeerId, PeerId], of: tuple[PeerId, ...] = (H, H2, M), me: PeerId = D) -> LeftOut:
    parts = RefusedParts()
    for accuser, accused in said:
        parts.refused(ONE, accuser, accused)
    return parts.left_out({ONE: of, TWO: (M2,)}, me)


def out(*peers: PeerId) -> LeftOut:
    return LeftOut(frozenset(peers))


def skips(*peers: PeerId) -> LeftOut:
    return LeftOut(skips_for=frozenset(peers))


def test_two_accusers_leave_one_out_and_a_single_one_is_left_out_with_it() -> None:
    assert left_out() == LeftOut()
    assert left_out((H, M), (H2, M)) == out(M)
    assert left_out((H, M)) == left_out((M, H)) == left_out((H, M), (M, H)) == out(H, M)


def test_what_one_says_that_two_have_accused_counts_no_more() -> None:
    assert left_out((M, H), (H, M), (H2, M)) == out(M)


def test_of_two_the_accused_one_is_left_out_and_when_both_accuse_the_step_is_skipped() -> None:
    assert left_out((H, M), of=(H, M)) == out(M)
    assert left_out((H, M), (M, H), of=(H, M)) == skips(H, M)


def test_nobody_gets_an_average_to_itself_by_accusing_all_others() -> None:
    assert left_out((M, H), (M, H2)) == out(M)
    assert left_out((M, H), (M, H2), of=(H, H2, M, M2)) == out(M)


def test_one_that_brings_nothing_is_believed_with_a_second_one_only() -> None:
    """Else it could have others left out for as long as it likes, and lose nothing."""
    assert left_out((IDLE, H)) == LeftOut(dropped=frozenset({IDLE}))
    assert left_out((IDLE, M), (H, M)) == out(M)
    assert left_out((IDLE, M), (H, M), (IDLE, H2)) == LeftOut(frozenset({M}), dropped=frozenset({IDLE}))
    assert left_out((IDLE, M), me=IDLE) == out(M), "whoever leads is no liar to itself"


def test_the_only_one_of_a_stage_is_not_left_out() -> None:
    parts = RefusedParts()
    parts.refused(TWO, D, M2)
    assert parts.left_out({ONE: (H, H2, M), TWO: (M2,)}, D) == skips(M2)


def test_what_is_said_by_or_of_a_lost_peer_is_forgotten() -> None:
    parts = RefusedParts()
    for accuser, accused in ((H, M), (H2, M), (M2, H)):
        parts.refused(ONE, accuser, accused)
    parts.forget(M)
    assert parts.left_out({ONE: (H, H2, M2)}, D) == out(H, M2)
    parts.forget(M2)
    assert parts.left_out({ONE: (H, H2)}, D) == LeftOut()
