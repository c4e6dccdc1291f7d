"""Which weights of an earlier epoch are still those of this one."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.core.epochs import Past


@pytest.mark.parametrize(
    ("epoch", "version", "shared"),
    [(0, 4, True), (0, 5, True), (0, 6, False), (1, 3, True), (1, 9, False), (2, 100, True), (3, 0, False)],
)
def test_versions_up_to_the_earliest_epoch_start_in_between_are_shared(epoch: int, version: int, shared: bool) -> None:
    past = Past().gone_back_to(7).gone_back_to(5)
    assert past.shares(epoch, version) is shared


def test_of_epochs_before_this_program_nothing_is_known() -> None:
    past = Past(epoch=2).gone_back_to(5)
    assert past.shares(2, 5) and not past.shares(1, 0) and not past.shares(0, 0)
