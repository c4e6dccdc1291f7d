"""One part computed with two versions of its weights that take turns (`delay_optimizer_step`), or, without that, with one.

Microbatches of iteration i are computed with the weights of version i - 1, those of iteration 0 with the first ones. While
iteration i is closed, i + 1 is computed already; so there are two executors of one part, the newer one with the weights of
version i, the older one with those of i - 1. The step of iteration i puts version i + 1 in the place of the older weights
(`PartOptimizer`), whose microbatches are all done: what the newer one holds, graphs and gradient sum, stays as it is, and it is
the older one from then on.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.optimizer import PartOptimizer

E = TypeVar("E", bound=StageExecutor | DataExecutor)


class Turns(Generic[E]):
    """`newest` has the optimizer's weights. `before` has those of the version before; None: every microbatch is computed with
    the newest."""

    def __init__(self, newest: E, optimizer: PartOptimizer, before: E | None = None) -> None:
        self.newest, self.before, self.optimizer = newest, before, optimizer

    @property
    def all(self) -> tuple[E, ...]:
        """All executors of the part."""
        return (self.newest,) if self.before is None else (self.before, self.newest)

    def of(self, iteration: int) -> E:
        """Who computes the microbatches of an iteration: of the one that the next step closes, or of the one after it."""
        return self.newest if self.before is None or iteration > self.optimizer.steps else self.before

    def stepped(self) -> None:
        """The optimizer has taken a step: the gradient that it took is empty, and whoever had summed it has the newest
        weights."""
        if self.before is not None:
            self.newest, self.before = self.before, self.newest
        self.newest.reset_gradients()

    def reset_gradients(self) -> None:
        """Nothing is counted or held, of any iteration."""
        for executor in self.all:
            executor.reset_gradients()

    def discard(self, microbatch: MicrobatchId) -> None:
        """Withdraw a microbatch, whoever holds it."""
        for executor in self.all:
            executor.discard(microbatch)


def take_turns(newest: E, spec: OptimizerSpec, before: E | None = None) -> Turns[E]:
    """With an optimizer for both. `before`, of another part with the same weights, computes the first iteration."""
    if before is None:
        return Turns(newest, PartOptimizer(newest.part.parameters, spec))
    with torch.no_grad():
        for name, parameter in before.part.parameters.items():
            parameter.copy_(newest.part.parameters[name])
    return Turns(newest, PartOptimizer(newest.part.parameters, spec, before.part.parameters), before)
