"""The figures of every step, for files and for trackers of experiments.

One row a step, written by a data peer:

    {"step", "loss", "learning_rate", "gradient_norm", "tokens", "seconds", "skipped"}

and one for each evaluation: {"step", "eval_loss", "perplexity", "eval_tokens", "eval_seconds"}. `step` counts steps that have
been taken, `tokens` those of the step, `seconds` since the step before, `skipped` steps since this peer's start whose gradient
was not finite; such a step has no loss. A row that cannot be written, or a tracker that fails, is said once and costs nothing
else: training goes on.
"""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import RunRecord

logger = logging.getLogger(__name__)

Row = dict[str, float | int]
TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "gwtf"


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """`file`: JSON lines are appended to it. `tracker`: one of TRACKERS, with `:FOLDER` for TensorBoard's."""

    file: Path | None = None
    tracker: str = ""

    def validate(self) -> None:
        """Raises InputError: a file that cannot be written, a tracker that is unknown or not installed."""
        if self.file is not None:
            try:
                with self.file.open("a", encoding="utf-8"):
                    pass
            except OSError as error:
                raise InputError("--metrics", str(self.file), f"expected a file to write ({error.strerror})") from error
        name = self.tracker.partition(":")[0]
        if self.tracker and name not in TRACKERS:
            raise InputError("--track", self.tracker, f"expected one of {', '.join(TRACKERS)}")
        if self.tracker:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise InputError("--track", self.tracker, f"expected the package {name}: pip install {name}") from error


class Tracker(Protocol):
    """Where rows go besides the file."""

    def log(self, row: Mapping[str, float | int]) -> None: ...

    def close(self) -> None: ...


class Rows:
    """From a data peer's reports to rows. `now` is in seconds."""

    def __init__(self, tokens_per_microbatch: int) -> None:
        self._tokens = tokens_per_microbatch
        self._step: Mapping[str, Any] = {}
        self._skipped = 0
        self._last_s: float | None = None

    def of(self, report: Mapping[str, Any], now: float) -> Row | None:
        """The row that a report completes."""
        match report["name"]:
            case "iteration_begins" if self._last_s is None:
                self._last_s = now
            case "optimizer_step":
                self._step = report
                self._skipped += bool(report["skipped"])
            case "stepped":
                return self._stepped(report, now)
            case "evaluated":
                figures = {"eval_loss": report["loss"], "perplexity": report["perplexity"]}
                return {
                    "step": report["iteration"],
                    **figures,
                    "eval_tokens": report["tokens"],
                    "eval_seconds": report["seconds"],
                }
        return None

    def _stepped(self, report: Mapping[str, Any], now: float) -> Row:
        row: Row = {"step": report["iteration"] + 1}
        if report["loss"] is not None:
            row["loss"] = report["loss"]
        if self._step.get("iteration") == report["iteration"]:
            row |= {"learning_rate": self._step["learning_rate"], "gradient_norm": self._step["gradient_norm"]}
        row |= {"tokens": report["different"] * self._tokens, "skipped": self._skipped}
        if self._last_s is not None:
            row["seconds"] = round(now - self._last_s, 4)
        self._last_s = now
        return row


class Metrics:
    """Hears a data peer's reports and writes rows, in a thread of its own."""

    def __init__(self, options: MetricsOptions, run: RunRecord) -> None:
        self._file, self._rows = options.file, Rows(run.microbatch_size * run.sequence_length)
        self._options, self._run = options, run
        self._tracker: Tracker | None = None
        self._failed: set[str] = set()
        self._thread: ThreadPoolExecutor | None = None

    def hearing(self, tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """The same listener, heard with."""
        if self._file is None and not self._options.tracker:
            return tell
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")

        def heard(report: dict[str, Any]) -> None:
            row = self._rows.of(report, time.monotonic())
            if row is not None and self._thread is not None:
                self._thread.submit(self._write, row)
            tell(report)

        return heard

    def close(self) -> None:
        """Return when all rows are written."""
        if self._thread is not None:
            self._thread.submit(self._close_tracker)
            self._thread.shutdown()
            self._thread = None

    def _write(self, row: Row) -> None:
        if self._file is not None:
            try:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                self._say("--metrics", error)
        if self._options.tracker and "--track" not in self._failed:
            try:
                self._tracker = self._tracker or tracker_of(self._options.tracker, self._run)
                self._tracker.log(row)
            except Exception as error:  # noqa: BLE001 - somebody else's service: whatever it raises, training goes on
                self._say("--track", error)

    def _close_tracker(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:  # noqa: BLE001 - as above
                self._say("--track", error)

    def _say(self, flag: str, error: Exception) -> None:
        if flag not in self._failed:
            self._failed.add(flag)
            logger.error("%s: %s; training goes on without it", flag, error)


def tracker_of(name: str, run: RunRecord) -> Tracker:
    """Begin an experiment in a tracker. Raises whatever its package raises."""
    kind, _, where = name.partition(":")
    if kind == "tensorboard":
        return _TensorBoard(where or f"runs/{run.run_id}")
    return _Session(importlib.import_module(kind), run)


class _TensorBoard:
    def __init__(self, folder: str) -> None:
        self._writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder)

    def log(self, row: Mapping[str, float | int]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _Session:
    """Weights & Biases, and trackio, which has the same interface."""

    def __init__(self, package: Any, run: RunRecord) -> None:
        self._package = package
        settings = {"seed": run.seed, "sequence_length": run.sequence_length, "tokens_per_iteration": run.tokens_per_iteration}
        package.init(project=PROJECT, name=str(run.run_id), config=settings)

    def log(self, row: Mapping[str, float | int]) -> None:
        self._package.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def close(self) -> None:
        self._package.finish()
