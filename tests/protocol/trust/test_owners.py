"""Which owner's run record is believed: the user's word, then what was joined before, then the only one; never one of two."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.trust.owners import choose_owner

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


@pytest.mark.parametrize(
    ("there", "wanted", "joined", "owner", "conflict"),
    [
        ([A], None, None, A, False),
        ([A, B], None, None, None, True),
        ([A, B], B, None, B, False),
        ([A, B], None, A, A, False),
        ([A, B], B, A, B, False),
        ([A], B, None, None, True),
        ([A], None, B, None, True),
        ([], B, None, None, False),
        ([], None, None, None, False),
    ],
)
def test_which_owner_is_believed(
    there: list[PeerId], wanted: PeerId | None, joined: PeerId | None, owner: PeerId | None, conflict: bool
) -> None:
    choice = choose_owner(there, wanted, joined)
    assert choice.owner == owner and choice.is_conflict == conflict
    named = {*there, *filter(None, [wanted or joined])}
    assert owner is not None or all(peer in choice.reason for peer in named)


def test_those_that_are_passed_over_are_named() -> None:
    assert choose_owner([C, A, B], A, None).others == (B, C)
