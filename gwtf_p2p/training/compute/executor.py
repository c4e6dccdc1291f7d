"""Forward and backward of one part, keyed by microbatch id. Synchronous: called from one compute thread.

Rules.
- A microbatch counts when its backward is done, and then exactly once: its gradient is in the sum and its id in `counted`. A
  second backward under a counted id raises AlreadyCountedError; the protocol drops duplicates before.
- Nothing that was not counted leaves a trace: gradients are computed aside and added only when they are complete, so an
  abandoned forward, or a backward that ran out of memory, changes nothing.
- A counted microbatch can be taken out again: `uncount` recomputes its gradient and subtracts it (to float tolerance; exactly,
  once nothing is left in the sum).
- With `torch_dtype = "bfloat16"` weights, gradients, optimizer and the residual stream stay float32; torch's autocast rounds
  the matrix products. No second copy of the weights is kept between calls.
- Tensors given in are kept without a copy where they already are float32 on the device: the caller must not write to them.
- Weights must not change while a graph is held: `reset_gradients` after the optimizer step drops what is left over.

Wrong shapes from a peer raise RemoteProtocolError; calls out of order are our bug and raise a LocalProtocolError.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.gradients import AlreadyCountedError, GradientAccumulator, GradientSum, NotHeldError
from gwtf_p2p.training.compute.tensor_bytes import dtype_of
from gwtf_p2p.training.model.split import DataPart, StagePart


def resolve_device(name: str, where: str = "--device") -> torch.device:
    """The torch device of `cpu`, `cuda` or `cuda:N`. Raises InputError if this machine has none such."""
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and colon) or (colon and not index.isdigit()):
        raise InputError(where, "", f"expected cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(where, "", f"expected cpu or one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return torch.device(name)


def _check_shape(microbatch: MicrobatchId, x_BTH: Tensor, expected: tuple[int, ...]) -> None:
    if x_BTH.shape != expected:
        raise RemoteProtocolError(f"{microbatch}: a tensor of shape {tuple(x_BTH.shape)}, expected {tuple(expected)}")


class _Executor:
    """What both kinds of part share: device, precision, the gradient sum."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: ExecutorConfig, device: torch.device) -> None:
        self.device = device
        self._compute_dtype = dtype_of(config.torch_dtype, "--torch_dtype")
        self._accumulator = GradientAccumulator(parameters)

    @property
    def counted(self) -> frozenset[MicrobatchId]:
        """Microbatches whose gradient is in the sum."""
        return frozenset(self._accumulator.counted)

    def gradient_vector(self) -> GradientSum:
        """The gradient sum so far, without a copy."""
        return self._accumulator.export()

    def load_gradient(self, gradient: GradientSum) -> None:
        """Add a sum that another peer of the stage has counted and hands over.

        Raises AlreadyCountedError if a microbatch is in both sums, RemoteProtocolError if names or shapes differ.
        """
        self._accumulator.merge(gradient)

    def _precision(self) -> AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._compute_dtype)

    def _residual(self, x_BTH: Tensor) -> Tensor:
        """An activation or gradient as received, on this device, in the residual stream's float32."""
        return x_BTH.detach().to(self.device, torch.float32)

    def _refuse_counted(self, microbatch: MicrobatchId) -> None:
        if microbatch in self._accumulator.counted:
            raise AlreadyCountedError(f"{microbatch}: it was already counted")

    def _require_counted(self, microbatch: MicrobatchId) -> None:
        if microbatch not in self._accumulator.counted:
            raise NotHeldError(f"{microbatch}: cannot be uncounted, it is not counted")


@dataclass(slots=True)
class _Held:
    """A forward that waits for its backward: the leaf input_BTH and, unless dropped, the output_BTH with its graph."""

    leaf: Tensor
    output: Tensor | None


class StageExecutor(_Executor):
    """A stage peer stage: activation in, activation out, and the gradients the other way."""

    def __init__(self, part: StagePart, config: ExecutorConfig) -> None:
        device = resolve_device(config.device)
        self.part = part.to(device)
        super().__init__(self.part.parameters, config, device)
        self._recompute = config.recompute
        self._held: dict[MicrobatchId, _Held] = {}

    @property
    def held(self) -> frozenset[MicrobatchId]:
        """Microbatches between forward and backward."""
        return frozenset(self._held)

    def forward(self, microbatch: MicrobatchId, activation_BTH: Tensor, keeps: bool = True) -> Tensor:
        """The stage's output_BTH, float32. A second forward of a microbatch replaces the first.

        Without `keeps` only the input is kept, and the forward is computed again before the backward.

        Raises RemoteProtocolError if the shape is not microbatch x sequence x hidden.
        """
        x_BTH = self._checked(activation_BTH).requires_grad_()
        keeps = keeps and not self._recompute
        y_BTH = self._run(x_BTH, with_graph=keeps)
        self._held[microbatch] = _Held(x_BTH, y_BTH if keeps else None)
        return y_BTH.detach()

    def drop_graph(self, microbatch: MicrobatchId) -> None:
        """Free the graph of a held forward and keep its input; the backward will recompute. Raises NotHeldError."""
        self._find(microbatch).output = None

    def recompute_forward(self, microbatch: MicrobatchId) -> Tensor:
        """Build the graph of a held forward again from its input; returns the output_BTH. Raises NotHeldError."""
        held = self._find(microbatch)
        held.output = self._run(held.leaf, with_graph=True)
        return held.output.detach()

    def backward(self, microbatch: MicrobatchId, output_gradient_BTH: Tensor) -> Tensor:
        """The gradient of the stage's input; the parameters' gradient is counted under the id and the forward is let go.

        Raises NotHeldError without a forward, AlreadyCountedError on a duplicate, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        held = self._find(microbatch)
        _check_shape(microbatch, output_gradient_BTH, held.leaf.shape)
        y_BTH = self._run(held.leaf, with_graph=True) if held.output is None else held.output
        held.output = None  # the graph is consumed; should the next line fail, the input is still there to try again
        input_gradient_BTH, gradients = self._gradients(held.leaf, y_BTH, output_gradient_BTH)
        del self._held[microbatch]
        self._accumulator.add(gradients)
        self._accumulator.counted.add(microbatch)
        return input_gradient_BTH

    def uncount(self, microbatch: MicrobatchId, activation_BTH: Tensor, output_gradient_BTH: Tensor) -> None:
        """Take a counted microbatch out of the sum, given the two tensors it was counted with. Raises NotHeldError."""
        self._require_counted(microbatch)
        x_BTH = self._checked(activation_BTH).requires_grad_()
        _, gradients = self._gradients(x_BTH, self._run(x_BTH, with_graph=True), output_gradient_BTH)
        self._accumulator.add(gradients, sign=-1)
        self._accumulator.counted.discard(microbatch)
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

    def _checked(self, activation_BTH: Tensor) -> Tensor:
        hidden = self.part.hidden_size
        if activation_BTH.dim() != 3 or activation_BTH.shape[2] != hidden:
            raise RemoteProtocolError(f"activation {tuple(activation_BTH.shape)}: expected microbatch x sequence x {hidden}")
        return self._residual(activation_BTH)

    def _run(self, x_BTH: Tensor, with_graph: bool) -> Tensor:
        with torch.set_grad_enabled(with_graph), self._precision():
            return self.part.forward(x_BTH).float()

    def _gradients(self, x_BTH: Tensor, y_BTH: Tensor, gradient_BTH: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = [x_BTH, *self.part.parameters.values()]
        first, *rest = torch.autograd.grad(y_BTH, inputs, self._residual(gradient_BTH))
        return first, dict(zip(self.part.parameters, rest, strict=True))


@dataclass(slots=True)
class _InFlight:
    """Between embedding and finish: tokens_BT, and (head input_BTH, labels_BT) once the loss is in."""

    tokens: Tensor
    loss_inputs: tuple[Tensor, Tensor] | None = None


class DataExecutor(_Executor):
    """The data peer's part: embedding first, loss last, and the embedding's gradient when the microbatch is back.

    Loss = mean cross entropy over the microbatch's tokens; `labels_BT[b, t]` is the token after `tokens_BT[b, t]`.
    The head's gradient is added at the loss, the embedding's at the finish. A microbatch is counted when finished; one that is
    discarded between the two has its head gradient taken out again.
    """

    def __init__(self, part: DataPart, config: ExecutorConfig) -> None:
        device = resolve_device(config.device)
        self.part = part.to(device)
        super().__init__(self.part.parameters, config, device)
        self._in_flight: dict[MicrobatchId, _InFlight] = {}

    @property
    def held(self) -> frozenset[MicrobatchId]:
        """Microbatches between embedding and finish."""
        return frozenset(self._in_flight)

    def embed(self, microbatch: MicrobatchId, tokens_BT: Tensor) -> Tensor:
        """The input_BTH of stage 1, float32. Asked again while in flight, it gives the same and changes nothing.

        Raises AlreadyCountedError for a finished microbatch.
        """
        self._refuse_counted(microbatch)
        flight = self._in_flight.setdefault(microbatch, _InFlight(tokens_BT.to(self.device)))
        with torch.no_grad(), self._precision():
            return self.part.embed(flight.tokens).float()

    def loss_and_gradient(self, microbatch: MicrobatchId, activation_BTH: Tensor, labels_BT: Tensor) -> tuple[float, Tensor]:
        """Loss of the last stage's output, and its gradient with respect to that output.

        Raises NotHeldError before `embed`, AlreadyCountedError the second time, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        flight = self._find(microbatch)
        if flight.loss_inputs is not None:
            raise AlreadyCountedError(f"{microbatch}: its loss was already taken")
        _check_shape(microbatch, activation_BTH, (*flight.tokens.shape, self.part.hidden_size))
        flight_inputs = (self._residual(activation_BTH), labels_BT.to(self.device))
        loss, input_gradient_BTH, gradients = self._head_gradients(*flight_inputs)
        self._accumulator.add(gradients)
        flight.loss_inputs = flight_inputs
        return loss, input_gradient_BTH

    def finish(self, microbatch: MicrobatchId, gradient_BTH: Tensor) -> None:
        """The embedding's backward, with stage 1's input gradient; the microbatch is counted and let go.

        Raises NotHeldError before the loss, AlreadyCountedError on a duplicate, RemoteProtocolError on a wrong shape.
        """
        self._refuse_counted(microbatch)
        flight = self._find(microbatch)
        if flight.loss_inputs is None:
            raise NotHeldError(f"{microbatch}: it comes back before its loss was taken")
        _check_shape(microbatch, gradient_BTH, (*flight.tokens.shape, self.part.hidden_size))
        self._accumulator.add(self._embedding_gradients(flight.tokens, gradient_BTH))
        self._accumulator.counted.add(microbatch)
        del self._in_flight[microbatch]

    def uncount(
        self, microbatch: MicrobatchId, batch_BT: tuple[Tensor, Tensor], activation_BTH: Tensor, gradient_BTH: Tensor
    ) -> None:
        """Take a finished microbatch out of the sum, given its (tokens, labels), head input and stage 1's input gradient."""
        self._require_counted(microbatch)
        tokens_BT, labels_BT = (tensor.to(self.device) for tensor in batch_BT)
        _, _, head = self._head_gradients(self._residual(activation_BTH), labels_BT)
        embedding = self._embedding_gradients(tokens_BT, gradient_BTH)
        self._accumulator.add(head, sign=-1)
        self._accumulator.add(embedding, sign=-1)
        self._accumulator.counted.discard(microbatch)
        self._clear_if_empty()

    def discard(self, microbatch: MicrobatchId) -> None:
        """Withdraw a microbatch that is in flight, if it is: its head gradient leaves the sum. What is counted stays."""
        flight = self._in_flight.get(microbatch)
        if flight is None:
            return
        if flight.loss_inputs is not None:
            _, _, gradients = self._head_gradients(*flight.loss_inputs)
            self._accumulator.add(gradients, sign=-1)
        del self._in_flight[microbatch]
        self._clear_if_empty()

    def gradient_vector(self) -> GradientSum:
        """The gradient sum of what is counted; a copy while a microbatch is half counted (loss, no finish), without that half.

        A data peer that came late is asked to average while its own microbatches, which are not in its share, are under way.
        """
        gradient = super().gradient_vector()
        halves = [flight.loss_inputs for flight in self._in_flight.values() if flight.loss_inputs is not None]
        if not halves:
            return gradient
        tensors = {name: torch.zeros_like(tensor) for name, tensor in gradient.tensors.items()}
        if gradient.counted:
            for name, tensor in gradient.tensors.items():
                tensors[name].copy_(tensor)
            for inputs in halves:
                for name, head in self._head_gradients(*inputs)[2].items():
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

    def _head_gradients(self, x_BTH: Tensor, labels_BT: Tensor) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Loss, gradient of x_BTH, gradients of norm and head (or tied embedding)."""
        leaf_BTH = x_BTH.detach().requires_grad_()
        with torch.enable_grad(), self._precision():
            logits_BTV = self.part.logits(leaf_BTH)
            loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten())
        parameters = self.part.head_parameters
        first, *rest = torch.autograd.grad(loss, [leaf_BTH, *parameters.values()])
        return loss.item(), first, dict(zip(parameters, rest, strict=True))

    def _embedding_gradients(self, tokens_BT: Tensor, gradient_BTH: Tensor) -> dict[str, Tensor]:
        parameters = self.part.embedding_parameters
        with torch.enable_grad(), self._precision():
            x_BTH = self.part.embed(tokens_BT).float()
        gradients = torch.autograd.grad(x_BTH, list(parameters.values()), self._residual(gradient_BTH))
        return dict(zip(parameters, gradients, strict=True))

    def _clear_if_empty(self) -> None:
        if not self._accumulator.counted and all(flight.loss_inputs is None for flight in self._in_flight.values()):
            self._accumulator.clear()
