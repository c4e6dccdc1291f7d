"""Which runs a comparison consists of, in which order, and doing them: interleaved, with progress, stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from gwtf_p2p.ab.trials.result import SIM, RunFile, RunResult
from gwtf_p2p.ab.trials.task import RunTask

TRIES = 2
"""A live run that fails is tried once more; that it failed is in the report."""

Run = Callable[[RunTask], RunResult]
Say = Callable[[str], None]


def interleaved(tasks: Sequence[RunTask]) -> list[RunTask]:
    """By scenario and seed, then all arms one after the other (A B A B): what the machine does meanwhile meets all arms."""
    order = {arm: i for i, arm in enumerate(dict.fromkeys(task.arm_text for task in tasks))}
    places = {name: i for i, name in enumerate(dict.fromkeys(task.scenario.name for task in tasks))}
    return sorted(tasks, key=lambda t: (t.backend != SIM, t.seed, places[t.scenario.name], order[t.arm_text]))


@dataclass
class Schedule:
    """`run` does one task. `failures` are the tasks that came to no end, with the reason."""

    tasks: Sequence[RunTask]
    file: RunFile
    run: Run
    say: Say
    failures: list[tuple[RunTask, str]] = field(default_factory=list)
    _took_s: dict[str, list[float]] = field(default_factory=dict)

    def pending(self) -> list[RunTask]:
        """Runs that the file does not hold yet, or holds with other settings."""
        done = self.file.read()
        return [t for t in self.tasks if t.key not in done or done[t.key].settings != t.settings]

    def work(self, errors: type[Exception] | tuple[type[Exception], ...]) -> None:
        """Do what is pending. What one of `errors` ends is tried again once; anything else is raised."""
        pending = self.pending()
        if len(pending) < len(self.tasks):
            self.say(f"{len(self.tasks) - len(pending)} of {len(self.tasks)} runs are there already")
        for number, task in enumerate(pending):
            for attempt in range(TRIES):
                began = time.monotonic()
                try:
                    result = self.run(task)
                except errors as error:
                    self.say(f"{task.key} failed: {error}")
                    if attempt + 1 == TRIES:
                        self.failures.append((task, str(error)))
                    continue
                self.file.append(result)
                self._took_s.setdefault(task.backend, []).append(time.monotonic() - began)
                self.say(self._line(number + 1, len(pending), result, pending[number + 1 :]))
                break

    def _line(self, number: int, of: int, result: RunResult, left: Sequence[RunTask]) -> str:
        told = f"{result.mean_iteration_s:.2f} s an iteration, waste {result.wasted_compute_fraction:.1%}"
        seconds = sum(mean(self._took_s.get(t.backend) or [result.wall_s]) for t in left)
        left_text = f"about {_duration(seconds)} left" if left else "done"
        return f"[{number}/{of}] {result.key}: {told}; took {_duration(result.wall_s)}; {left_text}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
