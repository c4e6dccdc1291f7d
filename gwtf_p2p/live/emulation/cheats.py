"""Stage peers that compute wrongly on purpose: what audits are tried with. No flag of a peer leads here.

`zeros`: outputs and gradients are nothing. `free_riding`: both are handed on as they came, and nothing is computed. `flipped`:
both have the other sign. `skips_layer`: one layer less. `stale`: weights of five steps ago. `scaled`: the gradient is 0.9 of
what it is.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire.records import LossSpec
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import StagePart

CHEATS = ("zeros", "free_riding", "flipped", "skips_layer", "stale", "scaled")
STALE_STEPS = 5
SCALE = 0.9
WRITES = r"(o_proj|down_proj|c_proj)\.(weight|bias)$"
"""Names of what adds to the residual stream, in the families that experiments train."""


class CheatingExecutor(StageExecutor):
    """A stage whose peer does not do what it should."""

    def __init__(self, part: StagePart, config: ExecutorConfig, loss: LossSpec, cheat: str) -> None:
        """Raises ValueError for a cheat that there is not."""
        if cheat not in CHEATS:
            raise ValueError(f"cheat: expected one of {', '.join(CHEATS)}, got {cheat!r}")
        super().__init__(part, config, loss)
        self.cheat = cheat
        self._old: deque[list[Tensor]] = deque(maxlen=STALE_STEPS + 1)
        self._skipped = _first_layer(part) if cheat == "skips_layer" else []

    def forward(self, microbatch: MicrobatchId, activation: Payload, keeps: bool = True) -> Payload:
        if self.cheat == "free_riding":
            return self._received(activation, self._input)
        with self._weights():
            return self._bent(super().forward(microbatch, activation, keeps))

    def recompute_forward(self, microbatch: MicrobatchId) -> Payload:
        return () if self.cheat == "free_riding" else super().recompute_forward(microbatch)

    def backward(self, microbatch: MicrobatchId, output_gradient: Payload) -> Payload:
        if self.cheat == "free_riding":
            self._accumulator.count(microbatch)
            return self._received(output_gradient, self._output, "gradient")
        with self._weights():
            gradient = super().backward(microbatch, output_gradient)
        return self._scaled(gradient, SCALE) if self.cheat == "scaled" else self._bent(gradient)

    def uncount(self, microbatch: MicrobatchId, activation: Payload, output_gradient: Payload) -> None:
        if self.cheat == "free_riding":
            self._accumulator.uncount(microbatch)
        else:
            super().uncount(microbatch, activation, output_gradient)

    def drop_graph(self, microbatch: MicrobatchId) -> None:
        if self.cheat != "free_riding":
            super().drop_graph(microbatch)

    def reset_gradients(self) -> None:
        super().reset_gradients()
        if self.cheat == "stale":
            self._old.append([parameter.detach().clone() for parameter in self._parameters.values()])

    def _bent(self, payload: Payload) -> Payload:
        factors = {"zeros": 0.0, "flipped": -1.0}
        return self._scaled(payload, factors[self.cheat]) if self.cheat in factors else payload

    def _scaled(self, payload: Payload, factor: float) -> Payload:
        return (payload[0] * factor, *payload[1:])

    @contextmanager
    def _weights(self) -> Iterator[None]:
        """Those of some steps ago, or of a layer that adds nothing."""
        parameters = list(self._parameters.values()) if self._old else self._skipped
        used = list(self._old[0]) if self._old else [torch.zeros_like(parameter.data) for parameter in self._skipped]
        now = [parameter.data for parameter in parameters]
        for parameter, data in zip(parameters, used, strict=True):
            parameter.data = data
        yield
        for parameter, data in zip(parameters, now, strict=True):
            parameter.data = data


def _first_layer(part: StagePart) -> list[nn.Parameter]:
    """What writes the first decoder layer of the stage into the residual stream."""
    found = {name: match.group(1) for name in part.parameters if (match := re.match(r"(.*?\.\d+)\.", name))}
    first = min(found.values(), key=lambda layer: int(layer.rsplit(".", 1)[1]))
    return [part.parameters[name] for name, layer in found.items() if layer == first and re.search(WRITES, name)]
