"""What is held out is never trained on, all else is; an evaluation on nothing, or of a stream, is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.protocol.wire.records import EvaluationSpec, RunRecord
from gwtf_p2p.training.data.batches import open_data
from gwtf_p2p.training.data.held_out import evaluation_batches
from tests.training.swarm import LLAMA, run_record

LENGTH = 16


def run_on(path: Path, evaluation: EvaluationSpec, **changes: object) -> RunRecord:
    sizes = {"sequence_length": LENGTH, "microbatch_size": 1, "microbatches_per_data_peer": 1, "dataset": f"text:{path}"}
    return run_record(LLAMA, **{**sizes, "evaluation": evaluation, **changes})


def text(path: Path, words: int = 500, first: int = 1000) -> Path:
    """Text in which no window is like another."""
    path.write_text(" ".join(str(number) for number in range(first, first + words)))
    return path


def test_nothing_that_is_held_out_is_trained_on_and_all_else_is(tmp_path: Path) -> None:
    path = text(tmp_path / "a.txt")
    run = run_on(path, EvaluationSpec(every=5, microbatches=1000, held_out=0.2))
    source, tokenizer = open_data(run)
    held = {tuple(tokens_BT[0].tolist()) for tokens_BT, _ in evaluation_batches(run, source, tokenizer)}
    windows = path.stat().st_size // LENGTH
    count = math.ceil(windows * 0.2)
    assert len(held) == count
    trained = {tuple(source.batch(i, 0, 0, 1)[0][0].tolist()) for i in range(windows - count)}
    assert len(trained) == windows - count and not trained & held
    whole = open_data(dataclasses.replace(run, evaluation=EvaluationSpec()))[0]
    assert {tuple(whole.batch(i, 0, 0, 1)[0][0].tolist()) for i in range(windows)} == trained | held


def test_another_dataset_is_evaluated_on_with_the_same_windows_each_time(tmp_path: Path) -> None:
    other = text(tmp_path / "b.txt", first=5000)
    run = run_on(text(tmp_path / "a.txt"), EvaluationSpec(every=5, microbatches=3, dataset=f"text:{other}"))
    found = [evaluation_batches(run, *open_data(run)) for _ in range(2)]
    assert len(found[0]) == 3
    assert all((a[0] == b[0]).all() for a, b in zip(*found, strict=True))
    assert all(bytes(tokens_BT[0].tolist()) in other.read_bytes() for tokens_BT, _ in found[0])


def test_of_a_stream_nothing_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "' + "word " * 500 + '"}\n')
    streamed = (DatasetSpec(str(tmp_path / "a.jsonl"), streaming=True),)
    run = run_on(tmp_path, EvaluationSpec(every=5, held_out=0.2), dataset=streamed)
    with pytest.raises(InputError, match=r"held_out: expected evaluation\.dataset: of a dataset that is streamed"):
        evaluation_batches(run, *open_data(run))


@pytest.mark.parametrize(
    ("evaluation", "field"),
    [
        (EvaluationSpec(every=5), "held_out"),
        (EvaluationSpec(every=5, held_out=0.1, dataset="stdlib"), "held_out"),
        (EvaluationSpec(held_out=0.1), "every"),
    ],
)
def test_an_evaluation_on_nothing_or_of_nothing_is_refused(evaluation: EvaluationSpec, field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"evaluation\.{field}: expected"):
        run_on(tmp_path, evaluation).validate()
