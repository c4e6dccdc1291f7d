"""What checkpoints know of evaluations, and which of them is exported as the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.messages import Evaluated, Evaluations
from gwtf_p2p.training.state.checkpoint import MANIFEST, save_checkpoint, step_folder
from gwtf_p2p.training.state.epochs import read_epochs, write_epochs
from gwtf_p2p.training.state.evaluations import best_checkpoints, evaluations_at, newest_evaluations, note_evaluations
from tests.training.swarm import LLAMA, run_record
from tests.training.test_checkpoint import small_state

EARLY, LATE = Evaluations(Evaluated(10, 2.0), 10, 2.0), Evaluations(Evaluated(20, 3.0), 10, 2.0, 1)


def save(root: Path, stage: int, known: dict[int, Evaluations | None], epoch: int = 0) -> None:
    for iteration, evaluations in known.items():
        save_checkpoint(root, run_record(LLAMA), stage, small_state(iteration), epoch, evaluations)


def test_the_best_checkpoint_is_that_of_the_newest_word(tmp_path: Path) -> None:
    for stage in range(3):
        save(tmp_path, stage, {10: None, 20: EARLY, 30: LATE})
    assert evaluations_at(tmp_path, 1, 10) is None and evaluations_at(tmp_path, 1, 30) == LATE
    assert newest_evaluations(tmp_path) == LATE
    assert [(each.stage, each.iteration) for each in best_checkpoints(tmp_path, 2)] == [(0, 10), (1, 10), (2, 10)]


def test_the_last_weights_may_turn_out_to_be_the_best(tmp_path: Path) -> None:
    """They are evaluated when their checkpoint is on the disk already."""
    for stage in range(3):
        save(tmp_path, stage, {10: None, 30: LATE})
    note_evaluations(tmp_path, 0, 30, Evaluations(Evaluated(30, 1.0), 30, 1.0))
    note_evaluations(tmp_path, 0, 40, LATE)  # no such checkpoint: nothing is made
    assert [each.iteration for each in best_checkpoints(tmp_path, 2)] == [30, 30, 30], "the files are as they were"
    assert not step_folder(tmp_path, 0, 40).exists()


def test_what_an_epoch_has_left_behind_is_not_the_best(tmp_path: Path) -> None:
    for stage in range(3):
        save(tmp_path, stage, {10: None, 20: EARLY, 30: Evaluations(Evaluated(20, 1.0), 20, 1.0)})
    write_epochs(tmp_path, read_epochs(tmp_path).going_on(1, 20))
    assert newest_evaluations(tmp_path) == EARLY


def test_why_there_is_no_best_is_told(tmp_path: Path) -> None:
    for stage in range(3):
        save(tmp_path, stage, {30: None})
    with pytest.raises(InputError, match="--best: expected checkpoints of a run with evaluations"):
        best_checkpoints(tmp_path, 2)
    save(tmp_path, 1, {30: Evaluations(Evaluated(0, None), waited=1)})
    with pytest.raises(InputError, match="expected an evaluation with a finite loss"):
        best_checkpoints(tmp_path, 2)
    save(tmp_path, 1, {10: None, 30: LATE})
    with pytest.raises(InputError, match=r"after 10 iterations, but stage 0, 2 has no intact .* keep_best = true"):
        best_checkpoints(tmp_path, 2)
    save(tmp_path, 1, {30: Evaluations(Evaluated(20, 9.0), 0, 2.0, 2)})
    with pytest.raises(InputError, match="that is what the run began with"):
        best_checkpoints(tmp_path, 2)


def test_what_is_no_word_of_evaluations_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 0, {30: LATE})
    path = step_folder(tmp_path, 0, 30) / MANIFEST
    for strange in ("x", 3, {"newest": 1}, {"newest": {"version": -5, "loss": 1.0}}):
        path.write_text(json.dumps({**json.loads(path.read_text()), "evaluations": strange}))
        assert evaluations_at(tmp_path, 0, 30) is None is newest_evaluations(tmp_path)
    save(tmp_path, 1, {30: None})
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out"), "--best"]) == 2
    assert "--best: expected checkpoints of a run with evaluations" in capsys.readouterr().err
