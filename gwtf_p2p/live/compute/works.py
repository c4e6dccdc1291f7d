"""What each kind of work is, on a stage peer's executor and on a data peer's. Everything here runs in the compute thread.

Inputs are read from the peer's slots and results are kept in them; `Compute` has the thread, the clock and the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gwtf_p2p.live.compute.boundary import BoundaryTensors
from gwtf_p2p.protocol.events import Slot, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.turns import Turns

LEAST_RUNS, MOST_RUNS, MEASURED_FOR_S = 2, 8, 0.2
"""Of a measurement: microbatches, and how long it goes on for more than the least number of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`loss` where there is one that is finite; `again_s` of a forward that was computed a second time. `finite`: all results
    are; zeros stand for those that are not, and no gradient was counted."""

    loss: float | None = None
    again_s: float = 0.0
    finite: bool = True


class Works(Protocol):
    """All that one peer computes for a microbatch."""

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> Outcome:
        """Do one of them."""
        ...

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """Free what the forward of this microbatch has kept."""
        ...

    def measure(self) -> dict[Work, float]:
        """Seconds of one real microbatch, per kind of work; nothing of it is counted."""
        ...


class StageWorks:
    """The works of a stage peer. Its forwards and backwards can be measured, since any tensor of the right shape will do."""

    def __init__(self, turns: Turns[StageExecutor], tensors: BoundaryTensors, keeps_counted: bool) -> None:
        """`keeps_counted`: what a microbatch was counted with stays here for as long as it is counted."""
        self._turns, self._tensors = turns, tensors
        for executor in turns.all if keeps_counted else ():
            executor.kept = lambda m: (tensors.read(m, Slot.INPUT), tensors.read(m, Slot.OUTPUT_GRADIENT))

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> Outcome:
        """See `Works.do`; a stage peer has no loss."""
        executor, tensors, again_s, finite = self._turns.of(microbatch.iteration), self._tensors, 0.0, True
        match work:
            case Work.FORWARD:
                output = executor.forward(microbatch, tensors.read(microbatch, Slot.INPUT), keeps)
                finite = tensors.keep(microbatch, Slot.OUTPUT, output)
            case Work.BACKWARD:
                if not keeps:
                    began = time.perf_counter()
                    executor.recompute_forward(microbatch)
                    again_s = time.perf_counter() - began
                gradient = executor.backward(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
                finite = tensors.keep(microbatch, Slot.INPUT_GRADIENT, gradient)
            case Work.UNCOUNT:
                input_, gradient = tensors.read(microbatch, Slot.INPUT), tensors.read(microbatch, Slot.OUTPUT_GRADIENT)
                executor.uncount(microbatch, input_, gradient)
            case Work.RECOUNT:
                executor.forward(microbatch, tensors.read(microbatch, Slot.INPUT))
                executor.backward(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case _:
                raise ValueError(f"a stage peer does not {work.value}")
        return Outcome(None, again_s, finite and microbatch not in executor.refused)

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """See `Works.drop_activations`."""
        self._turns.of(microbatch.iteration).drop_graph(microbatch)

    def measure(self) -> dict[Work, float]:
        """The first one pays for what torch sets up only once; of the others, few where one takes long, the quickest is taken:
        what others of this machine do meanwhile only makes it slower, and who is taken for slow gets no work to show better."""
        executor, trial = self._turns.newest, MicrobatchId(PeerId(""), -1, 0)
        seconds = {Work.FORWARD: math.inf, Work.BACKWARD: math.inf}
        ends, runs = time.perf_counter() + MEASURED_FOR_S, 0
        while runs < LEAST_RUNS or (runs < MOST_RUNS and time.perf_counter() < ends):
            payload = tuple(torch.zeros(tensor.shape, device=executor.device) for tensor in self._tensors.boundaries.input)
            began = time.perf_counter()
            output = executor.forward(trial, payload)
            turned = time.perf_counter()
            executor.backward(trial, output)
            took = {Work.FORWARD: turned - began, Work.BACKWARD: time.perf_counter() - turned}
            if runs:
                seconds = {work: min(seconds[work], took[work]) for work in seconds}
            runs += 1
            executor.reset_gradients()
        return seconds


class DataWorks:
    """The works of a data peer. `batch` gives tokens and labels of a microbatch, int64 each, shape (B, T)."""

    def __init__(
        self, turns: Turns[DataExecutor], tensors: BoundaryTensors, batch: Callable[[MicrobatchId], tuple[Tensor, Tensor]]
    ) -> None:
        self._turns, self._tensors, self._batch = turns, tensors, batch

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> Outcome:
        """See `Works.do`; `keeps` concerns stage peers only."""
        executor, tensors, loss, finite = self._turns.of(microbatch.iteration), self._tensors, None, True
        match work:
            case Work.EMBED:
                finite = tensors.keep(microbatch, Slot.OUTPUT, executor.embed(microbatch, *self._batch(microbatch)))
            case Work.LOSS:
                _, labels_BT = self._batch(microbatch)
                loss, gradient = executor.loss_and_gradient(microbatch, tensors.read(microbatch, Slot.INPUT), labels_BT)
                finite = tensors.keep(microbatch, Slot.INPUT_GRADIENT, gradient) and math.isfinite(loss)
            case Work.FINISH:
                executor.finish(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case Work.UNCOUNT:
                input_, gradient = tensors.read(microbatch, Slot.INPUT), tensors.read(microbatch, Slot.OUTPUT_GRADIENT)
                executor.uncount(microbatch, self._batch(microbatch), input_, gradient)
            case Work.RECOUNT:
                tokens_BT, labels_BT = self._batch(microbatch)
                executor.embed(microbatch, tokens_BT, labels_BT)
                executor.loss_and_gradient(microbatch, tensors.read(microbatch, Slot.INPUT), labels_BT)
                executor.finish(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case _:
                raise ValueError(f"a data peer does not {work.value}")
        told = loss if loss is not None and math.isfinite(loss) else None
        return Outcome(told, 0.0, finite and microbatch not in executor.refused)

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """See `Works.drop_activations`; it concerns stage peers only."""

    def measure(self) -> dict[Work, float]:
        """A data peer's works need real batches, and are not measured ahead."""
        return {}
