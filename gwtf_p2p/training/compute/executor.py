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
from gwtf_p2p.training.compute.gradients import AlreadyCountedError, GradientSum, NotHeldError, all_finite
from gwtf_p2p.training.compute.in_place import InPlace
from gwtf_p2p.training.compute.loss import loss_of, summed_loss
from gwtf_p2p.training.compute.part_executor import PartExecutor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import DataPart, StagePart


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

    def __init__(self, part: StagePart, config: ExecutorConfig) -> None:
        device = resolve_device(config.device)
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
        leaves = self._leaves(self._received(activation))
        keeps = keeps and not self._recompute
        computed = self._run(leaves, with_graph=keeps)
        self._held[microbatch] = _Held(leaves, computed if keeps else None)
        return _detached(computed.output)

    def evaluate(self, activation: Payload) -> Payload:
        """The stage's output for its own sake: nothing is held. Raises RemoteProtocolError on a wrong shape."""
        return _detached(self._run(self._received(activation), with_graph=False).output)

    def repeat(self, activation: Payload, output_gradient: Payload) -> tuple[Payload, Payload]:
        """What `forward` and `backward` give for these two; nothing is held or counted. Raises RemoteProtocolError."""
        leaves, gradient = self._leaves(self._received(activation)), self._received(output_gradient, "gradient")
        computed = self._run(leaves, with_graph=True)
        outputs, gradients = self._ends(computed, gradient)
        found = torch.autograd.grad(outputs, self._floats(leaves), gradients, allow_unused=True)  # of no weight
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
        gradient = self._received(output_gradient, f"{microbatch}: gradient")
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
        leaves, gradient = self._leaves(self._received(activation)), self._received(output_gradient, "gradient")
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
            hidden, *sides = self.part.forward(payload)
            return _Computed((hidden.float(), *sides), self.part.balance_loss())

    def _gradients(self, inputs: Payload, computed: _Computed, gradient: Payload) -> tuple[Payload, dict[str, Tensor]]:
        leaves = self._floats(inputs)
        outputs, gradients = self._ends(computed, gradient)
        found = torch.autograd.grad(outputs, [*leaves, *self._parameters.values()], gradients, allow_unused=True)
        return self._gradient_payload(inputs, found[: len(leaves)]), self._by_name(found[len(leaves) :])

    def _ends(self, computed: _Computed, gradient: Payload) -> tuple[list[Tensor], list[Tensor]]:
        """Where a backward begins, and with what."""
        # A side input is handed on as it came, so what later stages found of its gradient adds to what this one finds.
        outputs, gradients = self._floats(computed.output), self._floats(gradient)
        if computed.balance is not None:
            outputs, gradients = [*outputs, computed.balance], [*gradients, torch.ones_like(computed.balance)]
        return outputs, gradients

    def _add_in_place(
        self, kept: Kept, leaves: Payload, computed: _Computed, gradient: Payload, *, sign: int = 1
    ) -> tuple[Payload, bool]:
        """The input's gradient, and whether the parameters' are in the sum now (with sign -1: out of it).

        Where they are not, or anything fails, the sum is made again of what is counted.
        """
        done = False
        try:
            found, done = self._in_place.backward(*self._ends(computed, gradient), self._floats(leaves), sign)
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
                leaves = self._leaves(self._received(activation))
                computed = self._run(leaves, with_graph=True)
                self._accumulator.add(self._gradients(leaves, computed, self._received(gradient, "gradient"))[1])


def _detached(payload: Payload) -> Payload:
    return tuple(tensor.detach() for tensor in payload)


@dataclass(slots=True)
class _InFlight:
    """Between embedding and finish: tokens_BT, and (the head's payload, labels_BT) once the loss is in."""

    tokens: Tensor
    loss_inputs: tuple[Payload, Tensor] | None = None


class DataExecutor(PartExecutor):
    """The data peer's part: embedding first, loss last, and the embedding's gradient when the microbatch is back.

    Loss = mean cross entropy over the microbatch's tokens and what the run adds (`loss`); `labels_BT[b, t]` is the token after
    `tokens_BT[b, t]`.
    The head's gradient is added at the loss, the embedding's at the finish. A microbatch is counted when finished; one that is
    discarded between the two has its head gradient taken out again.
    """

    def __init__(self, part: DataPart, config: ExecutorConfig, loss: LossSpec | None = None) -> None:
        device = resolve_device(config.device)
        self._loss = loss or LossSpec()
        self.part = part.to(device)
        super().__init__(self.part, config, device)
        self._in_flight: dict[MicrobatchId, _InFlight] = {}

    @property
    def held(self) -> frozenset[MicrobatchId]:
        """Microbatches between embedding and finish."""
        return frozenset(self._in_flight)

    def embed(self, microbatch: MicrobatchId, tokens_BT: Tensor) -> Payload:
        """The input of stage 1, float32. Asked again while in flight, it gives the same and changes nothing.

        Raises AlreadyCountedError for a finished microbatch.
        """
        self._refuse_counted(microbatch)
        flight = self._in_flight.setdefault(microbatch, _InFlight(tokens_BT.to(self.device)))
        with torch.no_grad():
            return self._embedded(flight.tokens)

    def evaluate_embedding(self, tokens_BT: Tensor) -> Payload:
        """The input of stage 1 for its own sake: nothing is in flight."""
        with torch.no_grad():
            return self._embedded(tokens_BT.to(self.device))

    def evaluate_logits(self, tokens_BT: Tensor, activation: Payload) -> Tensor:
        """logits_BTV of the last stage's output, float32. Raises RemoteProtocolError on a wrong shape."""
        received = self._received(activation)
        with torch.no_grad(), self._precision():
            return self.part.logits(tokens_BT.to(self.device), received[0]).float()

    def evaluate_loss(self, tokens_BT: Tensor, activation: Payload, labels_BT: Tensor) -> tuple[float, int]:
        """(sum of the plain cross entropy, how many tokens have a label) of the last stage's output."""
        return summed_loss(self.evaluate_logits(tokens_BT, activation), labels_BT.to(self.device))

    def loss_and_gradient(self, microbatch: MicrobatchId, activation: Payload, labels_BT: Tensor) -> tuple[float, Payload]:
        """Loss of the last stage's output, and its gradient with respect to that output.

        Raises NotHeldError before `embed`, AlreadyCountedError the second time, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        flight = self._find(microbatch)
        if flight.loss_inputs is not None:
            raise AlreadyCountedError(f"{microbatch}: its loss was already taken")
        loss_inputs = (self._received(activation, f"{microbatch}: activation"), labels_BT.to(self.device))
        loss, hidden_gradient, gradients = self._head_gradients(flight.tokens, *loss_inputs)
        self._add(microbatch, gradients)
        flight.loss_inputs = loss_inputs
        rest = [None] * (len(self._floats(loss_inputs[0])) - 1)
        return loss, self._gradient_payload(loss_inputs[0], [hidden_gradient, *rest])

    def finish(self, microbatch: MicrobatchId, gradient: Payload) -> None:
        """The embedding's backward, with stage 1's input gradient; the microbatch is counted and let go.

        Raises NotHeldError before the loss, AlreadyCountedError on a duplicate, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        flight = self._find(microbatch)
        if flight.loss_inputs is None:
            raise NotHeldError(f"{microbatch}: it comes back before its loss was taken")
        self._add(microbatch, self._embedding_gradients(flight.tokens, gradient))
        self._accumulator.count(microbatch)
        del self._in_flight[microbatch]

    def uncount(
        self, microbatch: MicrobatchId, batch_BT: tuple[Tensor, Tensor], activation: Payload, gradient: Payload
    ) -> None:
        """Take a finished microbatch out of the sum, given its (tokens, labels), head input and stage 1's input gradient."""
        self._require_counted(microbatch)
        tokens_BT, labels_BT = (tensor.to(self.device) for tensor in batch_BT)
        _, _, head = self._head_gradients(tokens_BT, self._received(activation), labels_BT)
        embedding = self._embedding_gradients(tokens_BT, gradient)
        self._accumulator.add(head, sign=-1)
        self._accumulator.add(embedding, sign=-1)
        self._accumulator.uncount(microbatch)
        self._clear_if_empty()

    def discard(self, microbatch: MicrobatchId) -> None:
        """Withdraw a microbatch that is in flight, if it is: its head gradient leaves the sum. What is counted stays."""
        flight = self._in_flight.get(microbatch)
        if flight is None:
            return
        if flight.loss_inputs is not None:
            _, _, gradients = self._head_gradients(flight.tokens, *flight.loss_inputs)
            self._accumulator.add(gradients, sign=-1)
        self._accumulator.refused.discard(microbatch)
        del self._in_flight[microbatch]
        self._clear_if_empty()

    def gradient_vector(self) -> GradientSum:
        """The gradient sum of what is counted; a copy while a microbatch is half counted (loss, no finish), without that half.

        A data peer that came late is asked to average while its own microbatches, which are not in its share, are under way.
        """
        gradient = super().gradient_vector()
        flights = self._in_flight.values()
        halves = [(flight.tokens, *flight.loss_inputs) for flight in flights if flight.loss_inputs is not None]
        if not halves:
            return gradient
        tensors = {name: torch.zeros_like(tensor) for name, tensor in gradient.tensors.items()}
        if gradient.counted:
            for name, tensor in gradient.tensors.items():
                tensors[name].copy_(tensor)
            for inputs in halves:
                heads = self._head_gradients(*inputs)[2]
                for name, head in heads.items() if all_finite(heads.values()) else ():
                    tensors[name].sub_(head)
        return GradientSum(tensors, gradient.counted)

    def reset_gradients(self) -> None:
        """Start of an iteration: nothing counted, nothing in flight."""
        self._in_flight.clear()
        self._accumulator.clear()

    def _find(self, microbatch: MicrobatchId) -> _InFlight:
        if microbatch not in self._in_flight:
            raise NotHeldError(f"{microbatch}: it was not embedded here")
        return self._in_flight[microbatch]

    def _head_gradients(
        self, tokens_BT: Tensor, payload: Payload, labels_BT: Tensor
    ) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Loss, gradient of the hidden state, gradients of norm and head (or tied embedding)."""
        leaf = payload[0].detach().requires_grad_()
        with torch.enable_grad(), self._precision():
            logits_BTV = self.part.logits(tokens_BT, leaf)
            loss = loss_of(logits_BTV, labels_BT, self._loss)
        first, *rest = torch.autograd.grad(loss, [leaf, *self._parameters.values()], allow_unused=True)
        return loss.item(), first if first is not None else torch.zeros_like(leaf), self._by_name(rest)

    def _embedded(self, tokens_BT: Tensor) -> Payload:
        with self._precision():
            payload = self.part.embed(tokens_BT)
            return tuple(tensor if tensor.dtype == torch.int64 else tensor.float() for tensor in payload)

    def _embedding_gradients(self, tokens_BT: Tensor, gradient: Payload) -> dict[str, Tensor]:
        received = self._received(gradient, "gradient")
        with torch.enable_grad():
            outputs = self._floats(self._embedded(tokens_BT))
        pairs = [(x, g) for x, g in zip(outputs, self._floats(received), strict=True) if x.requires_grad]
        if not pairs:
            return {}
        tensors, gradients = zip(*pairs, strict=True)
        return self._by_name(torch.autograd.grad(tensors, list(self._parameters.values()), gradients, allow_unused=True))

    def _clear_if_empty(self) -> None:
        if not self._accumulator.counted and all(flight.loss_inputs is None for flight in self._in_flight.values()):
            self._accumulator.clear()
