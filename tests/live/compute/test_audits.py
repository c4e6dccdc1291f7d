"""Real peers, real tensors: who computes wrongly is convicted by two others of its stage, and nobody else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.audits.integrity import outcome, small
from gwtf_p2p.live.emulation.cheats import CHEATS

pytestmark = [pytest.mark.live, pytest.mark.slow]  # half a minute each


def test_a_peer_whose_results_are_nothing_is_convicted_and_the_run_goes_on(tmp_path: Path) -> None:
    found = outcome(small(seed=0, steps=4, audit=0.6), tmp_path, "zeros")
    assert found.reason == "" and found.caught_after is not None
    assert not found.barred and found.passed


@pytest.mark.parametrize("cheat", ["honest", *CHEATS])
def test_each_cheat_is_found_and_no_honest_peer_is_barred(tmp_path: Path, cheat: str) -> None:
    found = outcome(small(seed=1, steps=16, audit=0.3), tmp_path, "" if cheat == "honest" else cheat)
    assert found.reason == "" and not found.barred and found.passed
    assert (found.caught_after is None) == (cheat == "honest")
