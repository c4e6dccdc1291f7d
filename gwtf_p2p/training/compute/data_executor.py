"""A data peer's part: embedding first, head and loss last. What is said in `executor` holds here, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.records import LossSpec
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.device import resolve_device
from gwtf_p2p.training.compute.gradients import AlreadyCountedError, GradientSum, NotHeldError, all_finite
from gwtf_p2p.training.compute.loss import loss_of, summed_loss
from gwtf_p2p.training.compute.part_executor import PartExecutor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.parts.thin import ThinDataPart
from gwtf_p2p.training.model.split import DataPart


@dataclass(slots=True)
class _InFlight:
    """Between embedding and finish: tokens_BT and labels_BT, and (the head's payload, labels_BT) once the loss is in."""

    tokens: Tensor
    labels: Tensor | None
    loss_inputs: tuple[Payload, Tensor] | None = None


class DataExecutor(PartExecutor):
    """The data peer's part: embedding first, loss last, and the embedding's gradient when the microbatch is back.

    Loss = mean cross entropy over the microbatch's tokens and what the run adds (`loss`); `labels_BT[b, t]` is the token after
    `tokens_BT[b, t]`.
    The head's gradient is added at the loss, the embedding's at the finish. A microbatch is counted when finished; one that is
    discarded between the two has its head gradient taken out again.
    """

    part: DataPart | ThinDataPart

    def __init__(self, part: DataPart | ThinDataPart, config: ExecutorConfig, loss: LossSpec | None = None) -> None:
        device = resolve_device(config.device)
        self._loss = loss or LossSpec()
        self.part = part.to(device)
        super().__init__(self.part, config, device)
        self._in_flight: dict[MicrobatchId, _InFlight] = {}

    @property
    def held(self) -> frozenset[MicrobatchId]:
        """Microbatches between embedding and finish."""
        return frozenset(self._in_flight)

    def embed(self, microbatch: MicrobatchId, tokens_BT: Tensor, labels_BT: Tensor | None = None) -> Payload:
        """The input of stage 1, float32. Asked again while in flight, it gives the same and changes nothing.

        A thin one needs labels, too. Raises AlreadyCountedError for a finished microbatch.
        """
        self._refuse_counted(microbatch)
        flight = self._in_flight.setdefault(microbatch, _InFlight(tokens_BT.to(self.device), labels_BT))
        with torch.no_grad():
            return self._embedded(flight.tokens, flight.labels)

    def evaluate_embedding(self, tokens_BT: Tensor, labels_BT: Tensor | None = None) -> Payload:
        """The input of stage 1 for its own sake: nothing is in flight."""
        with torch.no_grad():
            return self._embedded(tokens_BT.to(self.device), labels_BT)

    def evaluate_logits(self, tokens_BT: Tensor, activation: Payload) -> Tensor:
        """logits_BTV of the last stage's output, float32. Raises RemoteProtocolError on a wrong shape."""
        received = self._received(activation, self._input)
        with torch.no_grad(), self._precision():
            return self._whole.logits(tokens_BT.to(self.device), received[0]).float()

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
        loss_inputs = (self._received(activation, self._input, f"{microbatch}: activation"), labels_BT.to(self.device))
        loss, hidden_gradient, gradients = self._head_gradients(flight.tokens, *loss_inputs)
        self._add(microbatch, gradients)
        flight.loss_inputs = loss_inputs
        rest = [None] * (len(self._floats(loss_inputs[0], self._input)) - 1)
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
        _, _, head = self._head_gradients(tokens_BT, self._received(activation, self._input), labels_BT)
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
    ) -> tuple[float, Tensor, Mapping[str, Tensor]]:
        """Loss, gradient of the hidden state, gradients of norm and head (or tied embedding)."""
        leaf = payload[0].detach().requires_grad_()
        with torch.enable_grad(), self._precision():
            logits_BTV = self._whole.logits(tokens_BT, leaf)
            loss = loss_of(logits_BTV, labels_BT, self._loss)
        first, *rest = torch.autograd.grad(loss, [leaf, *self._parameters.values()], allow_unused=True)
        return loss.item(), first if first is not None else torch.zeros_like(leaf), self._by_name(rest)

    @property
    def _whole(self) -> DataPart:
        assert isinstance(self.part, DataPart), "a thin one has an executor of its own"
        return self.part

    def _embedded(self, tokens_BT: Tensor, labels_BT: Tensor | None = None) -> Payload:
        with self._precision():
            payload = self._whole.embed(tokens_BT)
            return tuple(tensor if tensor.dtype == torch.int64 else tensor.float() for tensor in payload)

    def _embedding_gradients(self, tokens_BT: Tensor, gradient: Payload) -> dict[str, Tensor]:
        received = self._received(gradient, self._output, "gradient")
        with torch.enable_grad():
            outputs = self._floats(self._embedded(tokens_BT), self._output)
        pairs = [(x, g) for x, g in zip(outputs, self._floats(received, self._output), strict=True) if x.requires_grad]
        if not pairs:
            return {}
        tensors, gradients = zip(*pairs, strict=True)
        return self._by_name(torch.autograd.grad(tensors, list(self._parameters.values()), gradients, allow_unused=True))

    def _clear_if_empty(self) -> None:
        if not self._accumulator.counted and all(flight.loss_inputs is None for flight in self._in_flight.values()):
            self._accumulator.clear()
