"""What a data peer's reports become in a metrics file and in trackers, and that neither can stop training."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gwtf_p2p.live.measure.metrics import Metrics, MetricsOptions, Rows
from gwtf_p2p.protocol.errors import InputError
from tests.training.swarm import LLAMA, run_record

REPORTS: list[dict[str, Any]] = [
    {"name": "iteration_begins", "iteration": 0},
    {"name": "optimizer_step", "iteration": 0, "learning_rate": 0.1, "gradient_norm": 2.5, "skipped": False},
    {"name": "stepped", "iteration": 0, "loss": 3.0, "different": 4},
    {"name": "evaluated", "iteration": 1, "loss": 2.0, "perplexity": 7.4, "tokens": 48, "seconds": 0.5},
    {"name": "optimizer_step", "iteration": 1, "learning_rate": 0.2, "gradient_norm": -1.0, "skipped": True},
    {"name": "stepped", "iteration": 1, "loss": 2.5, "different": 3},
    {"name": "peer_lost", "peer": "x"},
]


def test_a_step_and_an_evaluation_are_a_row_each() -> None:
    rows = Rows(tokens_per_microbatch=10)
    found = [row for now, report in enumerate(REPORTS) if (row := rows.of(report, float(now))) is not None]
    assert found == [
        {"step": 1, "loss": 3.0, "learning_rate": 0.1, "gradient_norm": 2.5, "tokens": 40, "skipped": 0, "seconds": 2.0},
        {"step": 1, "eval_loss": 2.0, "perplexity": 7.4, "eval_tokens": 48, "eval_seconds": 0.5},
        {"step": 2, "loss": 2.5, "learning_rate": 0.2, "gradient_norm": -1.0, "tokens": 30, "skipped": 1, "seconds": 3.0},
    ]


def heard_with(options: MetricsOptions) -> list[dict[str, Any]]:
    """What the listener hears while all reports come."""
    metrics, heard = Metrics(options, run_record(LLAMA)), []
    tell = metrics.hearing(heard.append)
    for report in REPORTS:
        tell(report)
    metrics.close()
    return heard


def test_rows_are_appended_as_json_lines_and_logged_to_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    package = SimpleNamespace(
        init=lambda **how: logged.append(how["name"]),
        log=lambda row, step: logged.append((step, sorted(row))),
        finish=lambda: logged.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", package)
    options = MetricsOptions(tmp_path / "metrics.jsonl", "trackio")
    options.validate()
    assert heard_with(options) == REPORTS
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 2]
    assert logged == ["test", *((row["step"], sorted(row.keys() - {"step"})) for row in rows), "finished"]


def test_a_tracker_that_fails_is_said_once_and_everybody_else_hears_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**how: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=broken))
    with caplog.at_level(logging.ERROR):
        assert heard_with(MetricsOptions(tmp_path / "metrics.jsonl", "wandb")) == REPORTS
    assert [record.message for record in caplog.records] == ["--track: no network; training goes on without it"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MetricsOptions(Path("/dev/null/x")), "--metrics: /dev/null/x: expected a file to write"),
        (MetricsOptions(tracker="mlflow"), "--track: mlflow: expected one of tensorboard, trackio, wandb"),
        (MetricsOptions(tracker="wandb"), "--track: wandb: expected the package wandb: pip install wandb"),
    ],
)
def test_what_cannot_be_written_to_is_refused_at_the_start(
    options: MetricsOptions, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError) as refused:
        options.validate()
    assert message in str(refused.value)
