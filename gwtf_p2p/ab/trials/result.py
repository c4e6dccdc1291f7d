"""What one run measured, the same for a simulated and a live one, and the file that finished runs are kept in.

All times are seconds of the scenario (a live run's own seconds divided by its time scale), except what our code itself takes:
`planning_s`, `wall_s` and `cpu`, which are real. Means leave the warm-up iterations out; counts cover the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SIM, LIVE = "sim", "live"
BACKENDS = (SIM, LIVE)
TOLD_BY_PEERS = ("records", "control")
"""Kinds of bytes that no line is charged with: real ones, whatever a scenario's model would send."""


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """Names a run: no two lines of a file have the same."""

    scenario: str
    seed: int
    arm: str
    backend: str

    def __str__(self) -> str:
        return f"{self.scenario} seed {self.seed} {self.arm} ({self.backend})"


@dataclass(frozen=True, slots=True)
class RunResult:
    """`losses`: mean of each iteration (live). `bytes_by_kind` and `bytes_by_path` ("from > to") as charged to the lines, whose
    sum is "all"; "records" and "control" are beside it, as the peers have counted them (live).

    `messages`: small messages sent. `recovery_s`: from the loss to the repaired hop, of each recovery. `late`: computations
    that really took longer than the emulated device would. `cpu`: CPU seconds by kind of process, and the cores' part of it.
    """

    scenario: str
    seed: int
    arm: str
    backend: str
    time_scale: float
    settings: str
    commit: str
    churn: float
    warmup_iterations: int
    microbatches_per_iteration: int
    tokens_per_microbatch: int
    iteration_s: tuple[float, ...]
    bound_iteration_s: float
    bound_microbatches_per_s: float
    microbatches_lost: int
    double_counted: int
    wasted_compute_fraction: float
    recoveries: Mapping[str, int]
    recovery_s: tuple[float, ...]
    crashes: int
    returns: int
    spared: int
    moves: int
    messages: int
    bytes_by_kind: Mapping[str, int]
    bytes_by_path: Mapping[str, int]
    routes: Mapping[str, int]
    planning_s: float
    wall_s: float
    losses: tuple[float, ...] = ()
    late: int = 0
    computations: int = 0
    cpu: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> RunKey:
        return RunKey(self.scenario, self.seed, self.arm, self.backend)

    @property
    def measured_s(self) -> tuple[float, ...]:
        """Iterations after the warm-up."""
        return tuple(self.iteration_s[self.warmup_iterations :])

    @property
    def mean_iteration_s(self) -> float:
        return sum(self.measured_s) / len(self.measured_s)

    @property
    def microbatches_per_s(self) -> float:
        return self.microbatches_per_iteration / self.mean_iteration_s

    @property
    def tokens_per_s(self) -> float:
        return self.microbatches_per_s * self.tokens_per_microbatch

    @property
    def tokens_per_iteration(self) -> int:
        """Of all its microbatches."""
        return self.microbatches_per_iteration * self.tokens_per_microbatch

    def iterations_to_loss(self, loss: float) -> int | None:
        """Up to the first one whose mean loss is at most this; None when it is never reached."""
        return next((number for number, reached in enumerate(self.losses, start=1) if reached <= loss), None)

    def seconds_to_loss(self, loss: float) -> float | None:
        """Until that iteration has ended; None when it never comes."""
        number = self.iterations_to_loss(loss)
        return None if number is None else sum(self.iteration_s[:number])

    def to_json(self) -> dict[str, Any]:
        shown = {"mean_iteration_s": self.mean_iteration_s, "microbatches_per_s": self.microbatches_per_s}
        return {**asdict(self), **shown, "tokens_per_s": self.tokens_per_s}

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> RunResult:
        known = {f.name for f in fields(RunResult)}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in line.items() if name in known}
        return RunResult(**values)


class RunFile:
    """`runs.jsonl`: one line per finished run, appended as they finish; a comparison that was stopped goes on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[RunKey, RunResult]:
        """Of several lines of one run the last counts. A last line that was cut off by a stop is passed over."""
        if not self.path.exists():
            return {}
        found: dict[RunKey, RunResult] = {}
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                result = RunResult.from_json(json.loads(text))
            except (ValueError, TypeError):
                continue
            found[result.key] = result
        return found

    def append(self, result: RunResult) -> None:
        with self.path.open("a+", encoding="utf-8") as file:
            file.seek(0, 2)
            if file.tell() and not self.path.read_text(encoding="utf-8").endswith("\n"):
                file.write("\n")  # what a stop had cut off stays a line of its own
            file.write(json.dumps(result.to_json()) + "\n")
