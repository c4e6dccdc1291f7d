"""What one identity, all strangers, and everybody together may take of a peer's streams and memory; what is told of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.refusals import MOST_KINDS, TELL_S, Refusals
from gwtf_p2p.protocol.trust.stream_quotas import Share, admission, over

A, B, C, S, T, U = (PeerId(name) for name in "abcstu")
"""Members, then strangers."""

SHARE = Share(member=4, stranger=2, strangers=3, everybody=8)


def is_member(peer: PeerId) -> bool:
    return peer < "s"


@pytest.mark.parametrize(
    ("taken", "sender", "refused", "at_cost_of"),
    [
        ({}, A, "", None),
        ({A: 3}, A, "", None),
        ({A: 4}, A, "4 of 4 are its own", None),
        ({S: 1}, S, "", None),
        ({S: 2}, S, "2 of 2 are its own", None),
        ({S: 2, T: 1}, U, "3 of 3 are strangers'", None),
        ({S: 2, T: 1}, A, "", None),
        ({A: 4, S: 2, T: 1}, A, "4 of 4 are its own", None),
        ({A: 4, B: 4}, C, "", B),
        ({A: 4, B: 2, S: 2}, C, "", A),
        ({A: 3, B: 3, C: 2}, C, "all 8 are taken", None),
        ({A: 4, B: 4}, S, "", B),
    ],
)
def test_the_bound_of_one_of_all_strangers_and_of_everybody(
    taken: Mapping[PeerId, int], sender: PeerId, refused: str, at_cost_of: PeerId | None
) -> None:
    found = admission(SHARE, taken, sender, is_member)
    assert found.refused.startswith(refused) and bool(found.refused) == bool(refused)
    assert found.at_cost_of == at_cost_of


@pytest.mark.parametrize(
    ("taken", "sender", "more", "fits"),
    [({}, A, 4, True), ({}, A, 5, False), ({S: 2}, T, 1, True), ({S: 2}, T, 2, False), ({A: 4, B: 3}, C, 2, False)],
)
def test_bytes_have_the_same_three_bounds(taken: Mapping[PeerId, int], sender: PeerId, more: int, fits: bool) -> None:
    assert (over(SHARE, taken, sender, more, is_member) == "") is fits


@given(st.lists(st.sampled_from([A, B, C, S, T, U, *(PeerId(f"s{n}") for n in range(9))]), max_size=60))
def test_however_many_come_no_bound_is_passed_and_a_member_gets_its_share(senders: list[PeerId]) -> None:
    taken: dict[PeerId, int] = {}

    def ask(sender: PeerId) -> bool:
        found = admission(SHARE, taken, sender, is_member)
        if found.at_cost_of is not None:
            taken[found.at_cost_of] -= 1
        if not found.refused:
            taken[sender] = taken.get(sender, 0) + 1
        return not found.refused

    for sender in senders:
        ask(sender)
        assert sum(taken.values()) <= SHARE.everybody
        assert sum(n for peer, n in taken.items() if not is_member(peer)) <= SHARE.strangers
        assert all(n <= (SHARE.member if is_member(peer) else SHARE.stranger) for peer, n in taken.items())
    newcomer = PeerId("d")
    assert ask(newcomer)


def test_a_flood_of_refusals_is_told_once_and_then_once_a_minute_with_its_number() -> None:
    refusals = Refusals()
    assert [refusals.note((A, "x"), "x", now) for now in (0.0, 1.0, 2.0, TELL_S - 1)] == [1, 0, 0, 0]
    assert refusals.note((B, "x"), "x", 3.0) == 1
    assert refusals.note((A, "x"), "x", TELL_S) == 4
    assert refusals.note((A, "x"), "x", TELL_S + 1) == 0
    assert refusals.counts == {"x": 7}


def test_what_is_remembered_of_refusals_is_bounded() -> None:
    refusals = Refusals()
    for number in range(2 * MOST_KINDS):
        refusals.note(number, "x", 0.0)
    assert len(refusals._kinds) == MOST_KINDS
