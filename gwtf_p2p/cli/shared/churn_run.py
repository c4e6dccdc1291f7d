"""Carries out a churn script on a local run, as far as it is done from outside (see `live.emulation.faults` for the rest)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gwtf_p2p.cli.shared.churn import ANY, ChurnScript, ChurnStep
from gwtf_p2p.cli.shared.local_run import LocalRun
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.simulation.swarm.churn import Churn

if TYPE_CHECKING:
    from gwtf_p2p.live.emulation.faults import Fault

FIRST_ITERATION_S = 0.5
"""Length of an iteration, for the draw of a moment in it, while none has ended."""


def faults_of(script: ChurnScript, names: Sequence[str], folder: Path) -> dict[str, tuple[Fault, ...]]:
    """The faults of each of these peers. In `folder` they settle who gets there first."""
    from gwtf_p2p.live.emulation.faults import Fault

    faults: dict[str, tuple[Fault, ...]] = {}
    for number, step in enumerate(script.steps):
        token = folder / f"fault{number}" if step.index == ANY else None
        if token is not None:
            token.unlink(missing_ok=True)  # of an earlier run whose logs were kept
        for name in names:
            if step.moment and step.is_about(name):
                faults[name] = (*faults.get(name, ()), Fault(step.verb, step.moment, step.iteration, token))
    return faults


class ChurnRun:
    """`tick` is called often; `missed` are the steps that have not come about. `say` is told what is done."""

    def __init__(self, script: ChurnScript, run: LocalRun, seed: int, say: Callable[[str], None]) -> None:
        self.script, self.run, self.say = script, run, say
        self.churn = Churn(script.rates, seed, FIRST_ITERATION_S, self)
        self._done: set[ChurnStep] = set()

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
        for iteration, began_at in sorted(self.run.state.begun_at.items()):
            self.churn.iteration_begins(iteration, began_at)
        self.churn.act(time.monotonic())

    def _do(self, step: ChurnStep) -> None:
        run, name = self.run, step.target
        if step.verb == "restart" and (name not in run.lines or run.lines[name].state != "killed"):
            return  # not yet: it must be down first
        self._done.add(step)
        if step.verb == "join":
            name = run.add_stage_peer(step.stage)
            self.say(f"{name} joins in step {step.iteration + 1}")
        elif step.verb == "restart":
            run.start_again(name)
            self.say(f"{name} starts again in step {step.iteration + 1}")
        else:
            run.kill(name, step.verb)
            self.say(f"{step.verb} {name} in step {step.iteration + 1}")

    # ---- rates (see `simulation.churn`, which has the plan)

    def stages(self) -> Mapping[PeerId, Stage]:
        lines = {name: self.run.lines[name] for name in self.run.names("stage")}
        return {PeerId(name): Stage(line.stage) for name, line in lines.items() if line.state != "left"}

    def is_down(self, peer: PeerId) -> bool:
        return self.run.lines[peer].state == "killed"

    def is_online(self, peer: PeerId) -> bool:
        return self.run.lines[peer].state == "online"

    def crash(self, peer: PeerId) -> None:
        self.say(f"kill {peer} in step {self.run.state.newest + 1}")
        self.run.kill(peer)

    def come_back(self, peer: PeerId) -> None:
        self.say(f"{peer} starts again in step {self.run.state.newest + 1}")
        self.run.start_again(peer)
