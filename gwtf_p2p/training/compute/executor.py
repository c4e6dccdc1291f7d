"""Forward and backward of one part, keyed by microbatch id. Synchronous: called from one compute thread.

Rules.
- A microbatch counts when its backward is done, and then exactly once: its gradient is in the sum and its id in `counted`. A
  second backward under a counted id raises AlreadyCountedError; the protocol drops duplicates before.
- Nothing that was not counted leaves a trace: gradients are computed aside and added only when they are complete, so an
  abandoned forward, or a backward that ran out of memory, changes nothing. A stage of which all that is counted is `kept`
  adds them at once instead, which takes no memory; what then fails in the middle, or is not finite, has the sum made again.
- A gradient that is not finite is not added. Its microbatch counts, and is `refused` until it is taken out again.
- A counted microbatch can be taken out again: `uncount` recomputes its gradient and subtracts it (to float tolerance; exactly,
  once nothing is left in the sum).
- With `torch_dtype = "bfloat16"` weights, gradients, optimizer and the residual stream stay float32; torch's autocast rounds
  the matrix products. No second copy of the weights is kept between calls.
- What crosses a boundary is a payload: the hidden state, then side inputs (`model/doors`), as the part's `boundary` says. The
  gradient of a payload is one too; that of token ids is zeros.
- Tensors given in are kept without a copy where they already are float32 on the device: the caller must not write to them.
- Weights must not change while a graph is held: `reset_gradients` after the optimizer step drops what is left over.

Wrong shapes from a peer raise RemoteProtocolError; calls out of order are our bug and raise a LocalProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.records import LossSpec
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.device import resolve_device
from gwtf_p2p.training.compute.gradients import NotHeldError
from gwtf_p2p.training.compute.in_place import InPlace
from gwtf_p2p.training.compute.loss import NO_LABEL, loss_of, summed_loss
from gwtf_p2p.training.compute.part_executor import PartExecutor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import StagePart


@dataclass(frozen=True, slots=True)
class _Computed:
    """A forward's output, and what its own layers add to the loss (the experts' balance), with the graph if there is one."""

    output: Payload
    balance: Tensor | None = None


Kept = Callable[[MicrobatchId], tuple[Payload, Payload]]
"""What a counted microbatch was counted with: the stage's input, and the gradient of its output."""


@dataclass(slots=True)
class _Held:
    """A forward that waits for its backward: the leaves of its input and, unless dropped, what it computed with the graph."""

    leaves: Payload
    computed: _Computed | None


class StageExecutor(PartExecutor):
    """A stage: activation in, activation out, and the gradients the other way."""

    def __init__(self, part: StagePart, config: ExecutorConfig, loss: LossSpec | None = None) -> None:
        """`loss` is the run's; a part that holds the head computes it."""
        device = resolve_device(config.device)
        self._loss = loss or LossSpec()
        self.part = part.to(device)
        super().__init__(self.part, config, device)
        self._recompute = config.recompute
        self._held: dict[MicrobatchId, _Held] = {}
        self._in_place = InPlace(self._parameters, self._accumulator.export().tensors)
        self.kept: Kept | None = None

    @property
    def held(self) -> frozenset[MicrobatchId]:
        """Microbatches between forward and backward."""
        return frozenset(self._held)

    def forward(self, microbatch: MicrobatchId, activation: Payload, keeps: bool = True) -> Payload:
        """The stage's output, float32. A second forward of a microbatch replaces the first.

        Without `keeps` only the input is kept, and the forward is computed again before the backward.

        Raises RemoteProtocolError if the shapes are not the boundary's.
        """
        leaves = self._leaves(self._received(activation, self._input))
        keeps = keeps and not self._recompute
        computed = self._run(leaves, with_graph=keeps)
        self._held[microbatch] = _Held(leaves, computed if keeps else None)
        return _detached(computed.output)

    def evaluate(self, activation: Payload) -> Payload:
        """The stage's output for its own sake: nothing is held. Raises RemoteProtocolError on a wrong shape."""
        received = self._received(activation, self._input)
        if not self.part.holds_head:
            return _detached(self._run(received, with_graph=False).output)
        with torch.no_grad():
            logits_BTV, labels_BT = self._ended(received)
            total, count = summed_loss(logits_BTV, labels_BT)
        return (torch.tensor([0.0, total, float(count)]),)

    def evaluate_logits(self, activation: Payload) -> Tensor:
        """logits_BV, float32, of the last token of each row that has a label, of the part that holds the head; a row without
        one gets its first token's. Raises RemoteProtocolError on a wrong shape."""
        with torch.no_grad():
            logits_BTV, labels_BT = self._ended(self._received(activation, self._input))
        steps_T = torch.arange(labels_BT.shape[1], device=labels_BT.device)
        at_B = torch.where(labels_BT != NO_LABEL, steps_T, 0).amax(dim=1)
        return logits_BTV[torch.arange(len(at_B), device=at_B.device), at_B].float()

    def repeat(self, activation: Payload, output_gradient: Payload) -> tuple[Payload, Payload]:
        """What `forward` and `backward` give for these two; nothing is held or counted. Raises RemoteProtocolError."""
        leaves = self._leaves(self._received(activation, self._input))
        gradient = self._received(output_gradient, self._output, "gradient")
        computed = self._run(leaves, with_graph=True)
        outputs, gradients = self._ends(computed, gradient)
        floats = self._floats(leaves, self._input)
        found = torch.autograd.grad(outputs, floats, gradients, allow_unused=True) if floats else ()
        return _detached(computed.output), self._gradient_payload(leaves, found)

    def drop_graph(self, microbatch: MicrobatchId) -> None:
        """Free the graph of a held forward and keep its input; the backward will recompute. Raises NotHeldError."""
        self._find(microbatch).computed = None

    def recompute_forward(self, microbatch: MicrobatchId) -> Payload:
        """Build the graph of a held forward again from its input; returns the output. Raises NotHeldError."""
        held = self._find(microbatch)
        held.computed = self._run(held.leaves, with_graph=True)
        return _detached(held.computed.output)

    def backward(self, microbatch: MicrobatchId, output_gradient: Payload) -> Payload:
        """The gradient of the stage's input; the parameters' gradient is counted under the id and the forward is let go.

        Raises NotHeldError without a forward, AlreadyCountedError on a duplicate, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        held = self._find(microbatch)
        gradient = self._received(output_gradient, self._output, f"{microbatch}: gradient")
        computed = self._run(held.leaves, with_graph=True) if held.computed is None else held.computed
        held.computed = None  # the graph is consumed; should the next line fail, the input is still there to try again
        if self.kept is None:
            input_gradient, gradients = self._gradients(held.leaves, computed, gradient)
            self._add(microbatch, gradients)
        else:
            input_gradient, is_finite = self._add_in_place(self.kept, held.leaves, computed, gradient)
            if not is_finite:  # or a sum of it has overflowed: then it is found again, aside
                input_gradient, gradients = self._gradients(held.leaves, self._run(held.leaves, with_graph=True), gradient)
                self._add(microbatch, gradients)
        del self._held[microbatch]
        self._accumulator.count(microbatch)
        return input_gradient

    def uncount(self, microbatch: MicrobatchId, activation: Payload, output_gradient: Payload) -> None:
        """Take a counted microbatch out of the sum, given the two payloads it was counted with. Raises NotHeldError."""
        self._require_counted(microbatch)
        leaves = self._leaves(self._received(activation, self._input))
        gradient = self._received(output_gradient, self._output, "gradient")
        computed = self._run(leaves, with_graph=True)
        if self.kept is None:
            self._accumulator.add(self._gradients(leaves, computed, gradient)[1], sign=-1)
            self._accumulator.uncount(microbatch)
        elif microbatch in self._accumulator.refused:
            self._accumulator.uncount(microbatch)  # it is not in the sum
        else:
            self._accumulator.uncount(microbatch)
            self._add_in_place(self.kept, leaves, computed, gradient, sign=-1)
        if not self._accumulator.counted:
            self._accumulator.clear()

    def discard(self, microbatch: MicrobatchId) -> None:
        """Let go of a forward, if held. What is counted stays counted."""
        self._held.pop(microbatch, None)

    def reset_gradients(self) -> None:
        """Start of an iteration: nothing counted, nothing held."""
        self._held.clear()
        self._accumulator.clear()

    def _find(self, microbatch: MicrobatchId) -> _Held:
        if microbatch not in self._held:
            raise NotHeldError(f"{microbatch}: no forward of it is held")
        return self._held[microbatch]

    def _run(self, payload: Payload, with_graph: bool) -> _Computed:
        with torch.set_grad_enabled(with_graph), self._precision():
            hidden, *rest = self.part.forward(payload)
            balance = self.part.balance_loss()
            if not self.part.holds_head:
                return _Computed((hidden.float(), *rest), balance)
            labels_BT = self.part.labels((hidden, *rest))
            logits_BTV = self.part.logits(hidden)
        with torch.set_grad_enabled(with_graph):
            loss, plain = loss_of(logits_BTV, labels_BT, self._loss), summed_loss(logits_BTV.detach(), labels_BT)
            return _Computed((torch.stack([loss, *loss.new_tensor(plain)]),), balance)

    def _ended(self, payload: Payload) -> tuple[Tensor, Tensor]:
        """(logits_BTV, labels_BT) of the part that holds the head."""
        with self._precision():
            output = self.part.forward(payload)
            self.part.balance_loss()
            return self.part.logits(output[0]), self.part.labels(output)

    def _gradients(self, inputs: Payload, computed: _Computed, gradient: Payload) -> tuple[Payload, dict[str, Tensor]]:
        leaves = self._floats(inputs, self._input)
        outputs, gradients = self._ends(computed, gradient)
        wanted = [*leaves, *self._parameters.values()]
        found = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True) if outputs else [None] * len(wanted)
        return self._gradient_payload(inputs, found[: len(leaves)]), self._by_name(found[len(leaves) :])

    def _ends(self, computed: _Computed, gradient: Payload) -> tuple[list[Tensor], list[Tensor]]:
        """Where a backward begins, and with what: nowhere, where ids come in and nothing is trained here."""
        # A side input is handed on as it came, so what later stages found of its gradient adds to what this one finds.
        outputs, gradients = self._floats(computed.output, self._output), self._floats(gradient, self._output)
        if computed.balance is not None:
            outputs, gradients = [*outputs, computed.balance], [*gradients, torch.ones_like(computed.balance)]
        reached = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
        return [output for output, _ in reached], [each for _, each in reached]

    def _add_in_place(
        self, kept: Kept, leaves: Payload, computed: _Computed, gradient: Payload, *, sign: int = 1
    ) -> tuple[Payload, bool]:
        """The input's gradient, and whether the parameters' are in the sum now (with sign -1: out of it).

        Where they are not, or anything fails, the sum is made again of what is counted.
        """
        done = False
        try:
            found, done = self._in_place.backward(*self._ends(computed, gradient), self._floats(leaves, self._input), sign)
            return self._gradient_payload(leaves, found), done
        finally:
            if not done:
                self._sum_again(kept)

    def _sum_again(self, kept: Kept) -> None:
        """In the order in which they were counted, so with the same bits."""
        self._accumulator.clear_sums()
        for microbatch in self._accumulator.counted:
            if microbatch not in self._accumulator.refused:
                activation, gradient = kept(microbatch)
                leaves = self._leaves(self._received(activation, self._input))
                computed = self._run(leaves, with_graph=True)
                received = self._received(gradient, self._output, "gradient")
                self._accumulator.add(self._gradients(leaves, computed, received)[1])


def _detached(payload: Payload) -> Payload:
    return tuple(tensor.detach() for tensor in payload)
