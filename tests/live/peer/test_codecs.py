"""A swarm whose tensors travel in 8 bits, whose data peers hold no weights or whose steps are delayed trains; a crash leaves no
trace in its weights.

Two microbatches an iteration: the sum of two gradients has the same bits whoever adds them up, so weights can only differ if a
tensor that was sent again, or computed again, had other bytes. (In a longer sum the order matters in the last bit, and formats
that round make more of that in later iterations than float32 does: `WireSpec`.)
"""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bytes.stories import ROWS, told
from gwtf_p2p.cli.main import build_parser
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.cli.verbs.demo import plain_run
from gwtf_p2p.protocol.wire.tensor_formats import INT8
from gwtf_p2p.training.control import control_losses
from tests.live.peer.test_recovery import SMALL, assert_equal_weights, demo

pytestmark = [pytest.mark.live, pytest.mark.slow]  # two or three demos, a minute or two each

MOST_OF_FLOAT32 = 0.27


def test_a_stage_peer_is_killed_while_int8_travels(tmp_path: Path) -> None:
    flags = ("--wire", "int8", "--microbatches", "2")
    undisturbed = demo(tmp_path / "undisturbed", "", *flags)
    killed = demo(tmp_path / "killed", "kill peer stage=1 index=any at=backward_received iter=2", *flags)
    assert killed["recoveries"] and not undisturbed["recoveries"]
    assert undisturbed["last_loss"] < undisturbed["first_loss"]
    assert_equal_weights(tmp_path / "killed", tmp_path / "undisturbed")
    values = 1 * 32 * 128  # of one boundary tensor: microbatch size x sequence length x hidden size
    sent = undisturbed["bytes"]
    assert sent["per_hop"] <= MOST_OF_FLOAT32 * 2 * 4 * values
    for kind in ("activations", "gradients"):  # a slow machine may send some of them twice
        assert sent[kind] > 0 and sent[kind] % INT8.encoded_bytes(values) == 0
    assert sent["averages"] > 0 and sent["records"] > 0 and sent["control"] > 0


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ("int8", "thin_int8")])  # told in detail here
def test_a_stage_peer_is_killed_whatever_the_format(row: str, tmp_path: Path) -> None:
    """Equal weights, or what averages that round promise instead (`experiments.bytes.stories`)."""
    (line,) = told(row, ["backward_received"], tmp_path)
    assert line["recoveries"] and line["holds"], line


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


@pytest.mark.parametrize("at", ["backward_received", "averaging"])
def test_a_stage_peer_is_killed_while_two_iterations_are_under_way(at: str, tmp_path: Path) -> None:
    """Losses are those of one process with the same delay."""
    flags = ("--microbatches", "2", "--delay_optimizer_step")
    undisturbed = demo(tmp_path / "undisturbed", "", *flags)
    killed = demo(tmp_path / "killed", f"kill peer stage=1 index=any at={at} iter=2", *flags)
    assert killed["recoveries"] and not undisturbed["recoveries"]
    assert_equal_weights(tmp_path / "killed", tmp_path / "undisturbed")
    run = run_from_plain(plain_run(build_parser("demo").parse_args(["demo", *SMALL, *flags])), "test")
    control = control_losses(run, run.total_iterations, run.data_peers)
    assert max(abs(a - b) for a, b in zip(control, undisturbed["losses"], strict=True)) < 1e-4
