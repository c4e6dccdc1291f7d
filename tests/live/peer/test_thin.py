"""Data peers that hold no weights: the swarm trains as one with full ones does, and a crash leaves no trace in its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.peer.test_recovery import assert_equal_weights, demo

pytestmark = [pytest.mark.live, pytest.mark.slow]  # three demos, a minute or two each

IDS_AND_LABELS = 2 * 4 * 32


def test_a_stage_peer_is_killed_and_weights_are_those_of_full_data_peers(tmp_path: Path) -> None:
    flags = ("--microbatches", "2", "--thin_data_peers")
    full = demo(tmp_path / "full", "", "--microbatches", "2")
    thin = demo(tmp_path / "thin", "", *flags)
    killed = demo(tmp_path / "killed", "kill peer stage=1 index=any at=backward_received iter=2", *flags)
    assert killed["recoveries"] and not thin["recoveries"]
    assert thin["first_loss"] == pytest.approx(full["first_loss"], rel=1e-6)
    assert thin["last_loss"] == pytest.approx(full["last_loss"], rel=1e-4)
    assert_equal_weights(tmp_path / "killed", tmp_path / "thin")
    assert thin["bytes"]["activations"] < 0.8 * full["bytes"]["activations"]
