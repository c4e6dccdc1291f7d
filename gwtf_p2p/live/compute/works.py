"""What each kind of work is, on a stage peer's executor and on a data peer's. Everything here runs in the compute thread.

Inputs are read from the peer's slots and results are kept in them; `Compute` has the thread, the clock and the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gwtf_p2p.live.compute.boundary import BoundaryTensors
from gwtf_p2p.protocol.events import Slot, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.training.compute.executor import DataExecutor, StageExecutor


class Works(Protocol):
    """All that one peer computes for a microbatch."""

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> tuple[float | None, float]:
        """Return the loss, where there is one, and the seconds of a forward that was computed a second time."""
        ...

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """Free what the forward of this microbatch has kept."""
        ...

    def measure(self) -> dict[Work, float]:
        """Seconds of one real microbatch, per kind of work; nothing of it is counted."""
        ...


class StageWorks:
    """The works of a stage peer. Its forwards and backwards can be measured, since any tensor of the right shape will do."""

    def __init__(self, executor: StageExecutor, tensors: BoundaryTensors) -> None:
        self._executor, self._tensors = executor, tensors

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> tuple[float | None, float]:
        """See `Works.do`; a stage peer has no loss."""
        executor, tensors, again_s = self._executor, self._tensors, 0.0
        match work:
            case Work.FORWARD:
                tensors.keep(microbatch, Slot.OUTPUT, executor.forward(microbatch, tensors.read(microbatch, Slot.INPUT), keeps))
            case Work.BACKWARD:
                if not keeps:
                    began = time.perf_counter()
                    executor.recompute_forward(microbatch)
                    again_s = time.perf_counter() - began
                gradient = executor.backward(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
                tensors.keep(microbatch, Slot.INPUT_GRADIENT, gradient)
            case Work.UNCOUNT:
                input_, gradient = tensors.read(microbatch, Slot.INPUT), tensors.read(microbatch, Slot.OUTPUT_GRADIENT)
                executor.uncount(microbatch, input_, gradient)
            case Work.RECOUNT:
                executor.forward(microbatch, tensors.read(microbatch, Slot.INPUT))
                executor.backward(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case _:
                raise ValueError(f"a stage peer does not {work.value}")
        return None, again_s

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """See `Works.drop_activations`."""
        self._executor.drop_graph(microbatch)

    def measure(self) -> dict[Work, float]:
        """The first one pays for what torch sets up only once, so it is the second that is taken."""
        executor, trial = self._executor, MicrobatchId(PeerId(""), -1, 0)
        seconds: dict[Work, float] = {}
        for _ in range(2):
            payload = tuple(torch.zeros(tensor.shape, device=executor.device) for tensor in self._tensors.boundary)
            began = time.perf_counter()
            output = executor.forward(trial, payload)
            turned = time.perf_counter()
            executor.backward(trial, output)
            seconds = {Work.FORWARD: turned - began, Work.BACKWARD: time.perf_counter() - turned}
            executor.reset_gradients()
        return seconds


class DataWorks:
    """The works of a data peer. `batch` gives tokens and labels of a microbatch, int64 each, shape (B, T)."""

    def __init__(
        self, executor: DataExecutor, tensors: BoundaryTensors, batch: Callable[[MicrobatchId], tuple[Tensor, Tensor]]
    ) -> None:
        self._executor, self._tensors, self._batch = executor, tensors, batch

    def do(self, work: Work, microbatch: MicrobatchId, keeps: bool) -> tuple[float | None, float]:
        """See `Works.do`; `keeps` concerns stage peers only."""
        executor, tensors, loss = self._executor, self._tensors, None
        match work:
            case Work.EMBED:
                tokens_BT, _ = self._batch(microbatch)
                tensors.keep(microbatch, Slot.OUTPUT, executor.embed(microbatch, tokens_BT))
            case Work.LOSS:
                _, labels_BT = self._batch(microbatch)
                loss, gradient = executor.loss_and_gradient(microbatch, tensors.read(microbatch, Slot.INPUT), labels_BT)
                tensors.keep(microbatch, Slot.INPUT_GRADIENT, gradient)
            case Work.FINISH:
                executor.finish(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case Work.UNCOUNT:
                input_, gradient = tensors.read(microbatch, Slot.INPUT), tensors.read(microbatch, Slot.OUTPUT_GRADIENT)
                executor.uncount(microbatch, self._batch(microbatch), input_, gradient)
            case Work.RECOUNT:
                tokens_BT, labels_BT = self._batch(microbatch)
                executor.embed(microbatch, tokens_BT)
                executor.loss_and_gradient(microbatch, tensors.read(microbatch, Slot.INPUT), labels_BT)
                executor.finish(microbatch, tensors.read(microbatch, Slot.OUTPUT_GRADIENT))
            case _:
                raise ValueError(f"a data peer does not {work.value}")
        return loss, 0.0

    def drop_activations(self, microbatch: MicrobatchId) -> None:
        """See `Works.drop_activations`; it concerns stage peers only."""

    def measure(self) -> dict[Work, float]:
        """A data peer's works need real batches, and are not measured ahead."""
        return {}
