"""AdamW of one part, from the run record's OptimizerSpec.

Rules.
- AdamW works element by element, so parts that step on their own give the weights of the whole model's step.
- Gradient clipping alone needs a norm, and nobody knows the whole model's: **each part is clipped by its own norm**. Peers of
  a stage see the same averaged gradient, hence clip alike; the single-process control clips part by part too.
- Weight decay is decoupled (lr * weight_decay * weight) and spares vectors: norms and biases.
- The learning rate depends on the iteration alone: with w warm-up iterations it is lr * (i + 1) / w for i < w; after that it
  stays (constant), or falls from lr at iteration w to 0 at `total_iterations` (linear, cosine).
- Moments are allocated with the optimizer: the first step needs no more memory, and the state can be handed on before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.wire.records import OptimizerSpec

FIRST_MOMENT, SECOND_MOMENT = "exp_avg", "exp_avg_sq"  # torch's names for AdamW's state


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; `gradient_norm` is the part's own, before clipping."""

    learning_rate: float
    gradient_norm: float


def learning_rate(spec: OptimizerSpec, iteration: int) -> float:
    """The rate of a step, by the iteration (from 0) whose gradients it applies."""
    if iteration < spec.warmup_iterations:
        return spec.learning_rate * (iteration + 1) / spec.warmup_iterations
    if spec.schedule == "constant":
        return spec.learning_rate
    done = (iteration - spec.warmup_iterations) / (spec.total_iterations - spec.warmup_iterations)
    done = min(done, 1.0)
    if spec.schedule == "linear":
        return spec.learning_rate * (1.0 - done)
    return spec.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


class PartOptimizer:
    """AdamW over a part's named float32 parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec) -> None:
        self._parameters = dict(parameters)
        self._spec = spec
        decayed = [p for p in self._parameters.values() if p.dim() >= 2]
        spared = [p for p in self._parameters.values() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=spec.learning_rate,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
        )
        for parameter in self._parameters.values():
            self._adamw.state[parameter] = {
                "step": torch.tensor(0.0),
                FIRST_MOMENT: torch.zeros_like(parameter, requires_grad=False),
                SECOND_MOMENT: torch.zeros_like(parameter, requires_grad=False),
            }
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps taken so far; with one step per iteration, the weights version."""
        return self._steps

    def step(self, averaged: Mapping[str, Tensor], iteration: int) -> StepReport:
        """Apply the iteration's mean gradient (any device, float32). The tensors are not changed.

        Raises LocalProtocolError if names or shapes are not this part's.
        """
        if {n: g.shape for n, g in averaged.items()} != {n: p.shape for n, p in self._parameters.items()}:
            raise LocalProtocolError("optimizer step: gradient names or shapes are not this part's")
        gradients = {n: averaged[n].detach().to(p.device, torch.float32) for n, p in self._parameters.items()}
        norm, scale = self._clip(gradients)
        for name, parameter in self._parameters.items():
            # Scaled into a new tensor: the caller's gradient may be shared with others.
            parameter.grad = gradients[name] if scale == 1.0 else gradients[name] * scale
        rate = learning_rate(self._spec, iteration)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._steps += 1
        return StepReport(rate, norm)

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """First and second moment by parameter name; the optimizer's own tensors."""
        states = {name: self._adamw.state[parameter] for name, parameter in self._parameters.items()}
        return {name: (state[FIRST_MOMENT], state[SECOND_MOMENT]) for name, state in states.items()}

    def load_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]], steps: int) -> None:
        """Overwrite all moments and the step count. Names and shapes must be this part's (KeyError, RuntimeError)."""
        for name, parameter in self._parameters.items():
            state = self._adamw.state[parameter]
            state[FIRST_MOMENT].copy_(moments[name][0])
            state[SECOND_MOMENT].copy_(moments[name][1])
            state["step"].fill_(float(steps))
        self._steps = steps

    def _clip(self, gradients: Mapping[str, Tensor]) -> tuple[float, float]:
        """The part's gradient norm, and the factor that brings it under the limit."""
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()])
        norm, limit = float(torch.linalg.vector_norm(norms)), self._spec.gradient_clip
        return norm, limit / norm if 0 < limit < norm else 1.0
