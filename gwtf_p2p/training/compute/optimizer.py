"""The optimizer of one part, from the run record's OptimizerSpec.

Rules.
- AdamW works element by element, Adafactor parameter by parameter, so parts that step on their own give the weights of the
  whole model's step.
- The gradient is clipped by the whole model's norm, which the swarm learns when it closes an iteration: each stage says the
  squared norm of its average, and the commit has the norm of all. Without one, a part is the whole model.
- A norm that is not finite (`NOT_FINITE`) is a step that is skipped: the version rises, weights and moments stay. So is one
  that could leave weights that are not finite (`stays_finite`), which all stages must know before they commit.
- Weight decay is decoupled (lr * weight_decay * weight) and spares vectors (norms, biases) and what `no_decay` names.
- The learning rate depends on the iteration alone: with w warm-up iterations it is lr * (i + 1) / w for i < w; after that it
  stays (constant), or falls to `min_learning_rate` at `total_iterations`: from iteration w on (linear, cosine), or in the last
  `decay_iterations` (wsd).
- Moments are allocated with the optimizer: the first step needs no more memory, and the state can be handed on before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.gradients import squared_norm

FIRST_MOMENT, SECOND_MOMENT = "first_moment/", "second_moment/"
ROW_VARIANCE, COLUMN_VARIANCE, VARIANCE = "row_variance/", "column_variance/", "variance/"
LARGEST_WEIGHT = 1e37
"""No step may leave one that is larger: float32 ends at 3.4e38."""

LARGEST_UPDATE = 1e6
"""In units of the learning rate, what an optimizer may add to a weight: more than either can, for every setting in range."""

_ADAMW = {"exp_avg": FIRST_MOMENT, "exp_avg_sq": SECOND_MOMENT}
_ADAFACTOR = {"row_var": ROW_VARIANCE, "col_var": COLUMN_VARIANCE, "variance": VARIANCE}
"""torch's names of each optimizer's state, and those of the state that peers hand on."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; `gradient_norm` is the whole model's, before clipping. `skipped`: it was not finite."""

    learning_rate: float
    gradient_norm: float
    skipped: bool = False


def learning_rate(spec: OptimizerSpec, iteration: int) -> float:
    """The rate of a step, by the iteration (from 0) whose gradients it applies."""
    if iteration < spec.warmup_iterations:
        return spec.learning_rate * (iteration + 1) / spec.warmup_iterations
    if spec.schedule == "constant":
        return spec.learning_rate
    falls = spec.decay_iterations if spec.schedule == "wsd" else spec.total_iterations - spec.warmup_iterations
    done = min(max(iteration - (spec.total_iterations - falls), 0) / falls, 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if spec.schedule == "cosine" else 1.0 - done
    return spec.min_learning_rate + (spec.learning_rate - spec.min_learning_rate) * left


class PartOptimizer:
    """Over a part's named float32 parameters, of which there may be none: a part whose weights are all frozen."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec) -> None:
        self._parameters = dict(parameters)
        self._spec = spec
        self._names = _ADAMW if spec.kind == "adamw" else _ADAFACTOR
        decayed = {name for name, p in self._parameters.items() if _is_decayed(name, p, spec)}
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self._parameters.items() if name in decayed], "weight_decay": spec.weight_decay},
            {"params": [p for name, p in self._parameters.items() if name not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._torch: torch.optim.Optimizer | None = _torch_optimizer(groups, spec) if groups else None
        if self._torch is not None:
            for parameter in self._parameters.values():
                self._torch.state[parameter] = _fresh_state(parameter, spec)
        self._steps = 0

    @property
    def steps(self) -> int:
        """Steps taken so far; with one step per iteration, the weights version."""
        return self._steps

    def step(self, averaged: Mapping[str, Tensor], iteration: int, gradient_norm: float | None = None) -> StepReport:
        """Apply the iteration's mean gradient (any device, float32). The tensors are not changed.

        `gradient_norm` is the whole model's, None where this part is all of it. Raises LocalProtocolError if names or shapes
        are not this part's.
        """
        if {n: g.shape for n, g in averaged.items()} != {n: p.shape for n, p in self._parameters.items()}:
            raise LocalProtocolError("optimizer step: gradient names or shapes are not this part's")
        rate = learning_rate(self._spec, iteration)
        if gradient_norm is None:
            squared = squared_norm(averaged)
            gradient_norm = math.sqrt(squared) if squared >= 0 else NOT_FINITE
        if gradient_norm < 0:
            return self.skip(iteration, gradient_norm)
        self._steps += 1
        if self._torch is not None:
            self._apply(self._torch, averaged, rate, gradient_norm)
        return StepReport(rate, gradient_norm)

    def skip(self, iteration: int, gradient_norm: float) -> StepReport:
        """A step that changes nothing but the version."""
        self._steps += 1
        self._count(self._steps)
        return StepReport(learning_rate(self._spec, iteration), gradient_norm, skipped=True)

    def stays_finite(self, iteration: int) -> bool:
        """Whether a step at this iteration's rate leaves finite weights, whatever the gradient; equal for all that hold these
        weights. Only for rates that no run should have are the weights looked at."""
        rate = learning_rate(self._spec, iteration)
        growth = rate * (LARGEST_UPDATE + self._spec.weight_decay)
        if growth < 1e12:
            return True
        largest = max((float(p.detach().abs().max()) for p in self._parameters.values() if p.numel()), default=0.0)
        return (1 + growth) * (1 + largest) < LARGEST_WEIGHT

    def _apply(self, optimizer: torch.optim.Optimizer, averaged: Mapping[str, Tensor], rate: float, norm: float) -> None:
        limit = self._spec.gradient_clip
        scale = limit / norm if 0 < limit < norm else 1.0
        for name, parameter in self._parameters.items():
            gradient = averaged[name].detach().to(parameter.device, torch.float32)
            # Scaled into a new tensor: the caller's gradient may be shared with others.
            parameter.grad = gradient if scale == 1.0 else gradient * scale
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the optimizer keeps besides the step count, by `<kind of state>/<parameter>`; its own tensors."""
        if self._torch is None:
            return {}
        states = ((name, self._torch.state[parameter]) for name, parameter in self._parameters.items())
        return {
            f"{ours}{name}": state[theirs] for name, state in states for theirs, ours in self._names.items() if theirs in state
        }

    def load_state_tensors(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Overwrite all state and the step count. Names and shapes must be `state_tensors`' own (KeyError, RuntimeError)."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(state[name])
        self._count(steps)
        self._steps = steps

    def _count(self, steps: int) -> None:
        if self._torch is not None:
            for parameter in self._parameters.values():
                self._torch.state[parameter]["step"].fill_(float(steps))


def _is_decayed(name: str, parameter: Tensor, spec: OptimizerSpec) -> bool:
    return parameter.dim() >= 2 and not any(fnmatchcase(name, pattern) for pattern in spec.no_decay)


def _torch_optimizer(groups: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    if spec.kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=spec.learning_rate)
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)


def _fresh_state(parameter: nn.Parameter, spec: OptimizerSpec) -> dict[str, Tensor]:
    """What torch would make in the first step."""
    state = {"step": torch.tensor(0.0)}
    if spec.kind == "adamw":
        return state | {name: torch.zeros_like(parameter, requires_grad=False) for name in _ADAMW}
    if parameter.dim() < 2:
        return state | {"variance": torch.zeros_like(parameter, requires_grad=False)}
    rows, columns = list(parameter.shape), list(parameter.shape)
    rows[-1] = columns[-2] = 1
    return state | {"row_var": parameter.new_zeros(rows), "col_var": parameter.new_zeros(columns)}
