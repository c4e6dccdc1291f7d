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

import torch
from torch import Tensor, nn

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.updates import Step, update_of
from gwtf_p2p.training.compute.values import Gradient, HeldGradient

NO_STATE = -1
"""Steps of an optimizer whose state is not that of the weights."""

LARGEST_WEIGHT = 1e37
"""No step may leave one that is larger: float32 ends at 3.4e38."""

LARGEST_UPDATE = 1e6
"""In units of the learning rate, what an optimizer may add to a weight: more than either can, for every setting in range."""


PREVIOUS = "previous/"
"""Of a state: the weights of the version before, where optimizer steps are delayed."""


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
    """Over a part's named float32 parameters, of which there may be none: a part whose weights are all frozen.

    `before` are the same parameters of another module, which keep the weights of the version before (`turns`): a step makes the
    next version there, and the two change places.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        spec: OptimizerSpec,
        before: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._before = None if before is None else {name: before[name] for name in self._parameters}
        self._spec = spec
        self._updates = {name: update_of(parameter, spec) for name, parameter in self._parameters.items()}
        self._decayed = {name for name, p in self._parameters.items() if _is_decayed(name, p, spec)}
        self._steps, self._weights_of = 0, NO_STATE

    @property
    def steps(self) -> int:
        """Steps taken so far; with one step per iteration, the weights version. NO_STATE where that is not here."""
        return self._steps

    def step(self, averaged: Gradient | Mapping[str, Tensor], iteration: int, gradient_norm: float | None = None) -> StepReport:
        """Apply the iteration's mean gradient (any device, float32), which is not changed, and is read piece by piece.

        `gradient_norm` is the whole model's, None where this part is all of it. Raises LocalProtocolError if names or shapes
        are not this part's.
        """
        gradient = HeldGradient(averaged) if isinstance(averaged, Mapping) else averaged
        if gradient.shapes != {name: tuple(p.shape) for name, p in self._parameters.items()}:
            raise LocalProtocolError("optimizer step: gradient names or shapes are not this part's")
        rate = learning_rate(self._spec, iteration)
        if gradient_norm is None:
            squared = squared_norm(gradient)
            gradient_norm = math.sqrt(squared) if squared >= 0 else NOT_FINITE
        if gradient_norm < 0:
            return self.skip(iteration, gradient_norm)
        self._begin_version()
        self._apply(gradient, rate, gradient_norm)
        return StepReport(rate, gradient_norm)

    def skip(self, iteration: int, gradient_norm: float) -> StepReport:
        """A step that changes nothing but the version."""
        self._begin_version()
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

    def _begin_version(self) -> None:
        self._steps += 1
        if self._before is None:
            return
        with torch.no_grad():
            for name, parameter in self._before.items():
                parameter.copy_(self._parameters[name])
                self._updates[name].turn_to(parameter)
        self._parameters, self._before = self._before, self._parameters

    def _apply(self, gradient: Gradient, rate: float, norm: float) -> None:
        limit = self._spec.gradient_clip
        scale = limit / norm if 0 < limit < norm else 1.0
        for name, parameter in self._parameters.items():

            def piece(start: int, stop: int, name: str = name, device: torch.device = parameter.device) -> Tensor:
                values = gradient.piece(name, start, stop).to(device, torch.float32)
                return values if scale == 1.0 else values * scale  # a new tensor: the gradient may be shared with others

            decay = self._spec.weight_decay if name in self._decayed else 0.0
            self._updates[name].apply(piece, Step(self._steps, rate, decay))

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the optimizer keeps besides the step count, by `<kind of state>/<parameter>`; its own tensors."""
        before = {f"{PREVIOUS}{name}": parameter.detach() for name, parameter in (self._before or {}).items()}
        kept = {f"{kind}{name}": tensor for name, update in self._updates.items() for kind, tensor in update.state.items()}
        return kept | before

    @property
    def weights_version(self) -> int:
        """Of the weights alone."""
        return self._weights_of if self._steps == NO_STATE else self._steps

    def forget_state(self, weights_of: int = NO_STATE) -> None:
        """Weights of this version are here, and what belongs to them is not, until `load_state_tensors`: no step can be
        taken."""
        self._steps, self._weights_of = NO_STATE, weights_of

    def load_state_tensors(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Overwrite all state and the step count. Names and shapes must be `state_tensors`' own (KeyError, RuntimeError)."""
        for name, tensor in self.state_tensors().items():
            tensor.copy_(state[name])
        self._steps = steps


def _is_decayed(name: str, parameter: Tensor, spec: OptimizerSpec) -> bool:
    return parameter.dim() >= 2 and not any(fnmatchcase(name, pattern) for pattern in spec.no_decay)
