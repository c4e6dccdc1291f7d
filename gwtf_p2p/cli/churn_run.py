"""Carries out a churn script on a local run, as far as it is done from outside (see `live.faults` for the rest)."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gwtf_p2p.cli.churn import ANY, ChurnScript, ChurnStep
from gwtf_p2p.cli.local_run import GONE, LocalRun

if TYPE_CHECKING:
    from gwtf_p2p.live.faults import Fault

FIRST_ITERATION_S = 0.5
"""Length of an iteration, for the draw of a moment in it, while none has ended."""


def faults_of(script: ChurnScript, names: Sequence[str], folder: Path) -> dict[str, Fault]:
    """The first fault of each of these peers. In `folder` they settle who gets there first."""
    from gwtf_p2p.live.faults import Fault

    faults: dict[str, Fault] = {}
    for number, step in enumerate(script.steps):
        token = folder / f"fault{number}" if step.index == ANY else None
        if token is not None:
            token.unlink(missing_ok=True)  # of an earlier run whose logs were kept
        for name in names:
            if step.moment and step.is_about(name):
                faults.setdefault(name, Fault(step.verb, step.moment, step.iteration, token))
    return faults


class ChurnRun:
    """`tick` is called often; `missed` are the steps that have not come about. `say` is told what is done."""

    def __init__(self, script: ChurnScript, run: LocalRun, seed: int, say: Callable[[str], None]) -> None:
        self.script, self.run, self.say = script, run, say
        self.crashes = self.returns = 0
        self._random = random.Random(f"churn {seed}")
        self._done: set[ChurnStep] = set()
        self._drawn = -1
        self._due: list[tuple[float, str]] = []

    @property
    def missed(self) -> list[str]:
        return [str(step) for step in self.script.steps if step not in self._done]

    def fired(self, name: str, moment: str, iteration: int) -> None:
        """A peer has broken down by itself at this moment."""
        now = (moment, iteration)
        self._done |= {s for s in self.script.steps if (s.moment, s.iteration) == now and s.is_about(name)}

    def tick(self) -> None:
        """Do what is due."""
        for step in self.script.steps:
            if not step.moment and step not in self._done and step.iteration in self.run.state.begun_at:
                self._do(step)
        if self.script.rates.crash:
            newest = max(self.run.state.begun_at, default=-1)
            if newest > self._drawn:
                self._drawn = newest
                self._draw()
            self._crash_due()

    def _do(self, step: ChurnStep) -> None:
        run, name = self.run, step.target
        if step.verb == "restart" and (name not in run.lines or run.lines[name].state != "killed"):
            return  # not yet: it must be down first
        self._done.add(step)
        if step.verb == "join":
            name = run.add_relay(step.stage)
            self.say(f"{name} joins in step {step.iteration + 1}")
        elif step.verb == "restart":
            run.start_again(name)
            self.say(f"{name} starts again in step {step.iteration + 1}")
        else:
            run.kill(name, step.verb)
            self.say(f"{step.verb} {name} in step {step.iteration + 1}")

    # ---- rates

    def _draw(self) -> None:
        """Once per iteration: who comes back, who crashes, and when. Every relay costs the same draws, whatever its state."""
        rates, run = self.script.rates, self.run
        seconds = run.state.iteration_seconds()[-8:]
        length_s = statistics.median(seconds) if seconds else FIRST_ITERATION_S
        for name in sorted(run.names("relay")):
            crash, back, moment = (self._random.random() for _ in range(3))
            if run.lines[name].state == "killed" and back < rates.rejoin:
                self.returns += 1
                self.say(f"{name} starts again in step {self._drawn + 1}")
                run.start_again(name)
            elif run.lines[name].state not in GONE and crash < rates.crash:
                self._due.append((time.monotonic() + moment * length_s, name))

    def _crash_due(self) -> None:
        now, run = time.monotonic(), self.run
        for due in [due for due in self._due if due[0] <= now]:
            self._due.remove(due)
            name = due[1]
            stage = run.lines[name].stage
            others = [n for n in run.names("relay", "online") if run.lines[n].stage == stage and n != name]
            if run.lines[name].state == "online" and others:
                self.crashes += 1
                self.say(f"kill {name} in step {self._drawn + 1}")
                run.kill(name)
