"""What the executors of a stage and of a data peer share: device, precision, the boundary, the gradient sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.records import BoundaryTensor
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.gradients import AlreadyCountedError, GradientAccumulator, GradientSum, NotHeldError
from gwtf_p2p.training.compute.tensor_bytes import dtype_of
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.parts.thin import ThinDataPart
from gwtf_p2p.training.model.split import DataPart, StagePart

Boundary = tuple[BoundaryTensor, ...]


class PartExecutor:
    """Of one part (`executor.py`)."""

    def __init__(self, part: StagePart | DataPart | ThinDataPart, config: ExecutorConfig, device: torch.device) -> None:
        self.device = device
        self._input, self._output = part.boundaries.input, part.boundaries.output
        self._parameters: Mapping[str, nn.Parameter] = part.parameters
        self._compute_dtype = dtype_of(config.torch_dtype, "--torch_dtype")
        self._accumulator = GradientAccumulator(part.parameters)

    @property
    def counted(self) -> frozenset[MicrobatchId]:
        """Microbatches whose gradient is in the sum."""
        return frozenset(self._accumulator.counted)

    @property
    def refused(self) -> frozenset[MicrobatchId]:
        """Microbatches whose gradient is not finite, and so not in the sum."""
        return frozenset(self._accumulator.refused)

    def gradient_vector(self) -> GradientSum:
        """The gradient sum so far, without a copy."""
        return self._accumulator.export()

    def load_gradient(self, gradient: GradientSum) -> None:
        """Add a sum that another peer of the stage has counted and hands over.

        Raises AlreadyCountedError if a microbatch is in both sums, RemoteProtocolError if names or shapes differ.
        """
        self._accumulator.merge(gradient)

    def _add(self, microbatch: MicrobatchId, gradients: Mapping[str, Tensor]) -> None:
        if not self._accumulator.add(gradients):
            self._accumulator.refused.add(microbatch)

    def _precision(self) -> AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._compute_dtype)

    def _received(self, payload: Payload, boundary: Boundary, what: str = "activation") -> Payload:
        """A payload or its gradient on this device, floats in the residual stream's float32.

        Raises RemoteProtocolError if the shapes are not the boundary's.
        """
        expected, got = [each.shape for each in boundary], [tuple(tensor.shape) for tensor in payload]
        if expected != got:
            raise RemoteProtocolError(f"{what} of shapes {got}: expected {expected}")
        return tuple(
            tensor.detach().to(self.device, torch.int64 if each.is_integer else torch.float32)
            for tensor, each in zip(payload, boundary, strict=True)
        )

    def _leaves(self, payload: Payload) -> Payload:
        """The same values of an input as new leaves of a graph."""
        return tuple(
            tensor if each.is_integer else tensor.detach().requires_grad_()
            for tensor, each in zip(payload, self._input, strict=True)
        )

    @staticmethod
    def _floats(payload: Payload, boundary: Boundary) -> list[Tensor]:
        return [tensor for tensor, each in zip(payload, boundary, strict=True) if not each.is_integer]

    def _gradient_payload(self, inputs: Payload, gradients: Sequence[Tensor | None]) -> Payload:
        """The gradients of the float inputs, in their order, as a payload; zeros where there is none."""
        left = iter(gradients)
        found = [None if each.is_integer else next(left) for each in self._input]
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))

    def _by_name(self, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Gradients of the parameters, in their order, without those that the computation did not reach."""
        return {name: g for name, g in zip(self._parameters, gradients, strict=True) if g is not None}

    def _refuse_counted(self, microbatch: MicrobatchId) -> None:
        if microbatch in self._accumulator.counted:
            raise AlreadyCountedError(f"{microbatch}: it was already counted")

    def _require_counted(self, microbatch: MicrobatchId) -> None:
        if microbatch not in self._accumulator.counted:
            raise NotHeldError(f"{microbatch}: cannot be uncounted, it is not counted")
