"""What each optimizer does to one parameter, and the state that it keeps of it.

Weights change in place, piece by piece, so that a step takes no memory worth speaking of; bits are those of torch's own
optimizer over whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gwtf_p2p.protocol.wire.recipe import EIGHT_BIT_LEAST
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.eight_bits import BLOCK_VALUES, blocks_of, chances, decode, encode
from gwtf_p2p.training.compute.values import PIECE_VALUES, spans

FIRST_MOMENT, SECOND_MOMENT = "first_moment/", "second_moment/"
ROW_VARIANCE, COLUMN_VARIANCE, VARIANCE = "row_variance/", "column_variance/", "variance/"
NEVER_NEGATIVE = (SECOND_MOMENT, ROW_VARIANCE, COLUMN_VARIANCE, VARIANCE)
"""Kinds of state of which an update takes the root."""

CODES = FIRST_CODES, ROOT_CODES = "first_moment_8bit/", "second_moment_root_8bit/"
SCALES = FIRST_SCALE, ROOT_SCALE = "first_moment_scale/", "second_moment_root_scale/"

_ADAFACTOR = {"row_var": ROW_VARIANCE, "col_var": COLUMN_VARIANCE, "variance": VARIANCE}

ACCELERATOR_VALUES = 1 << 22
"""Pieces of an accelerator, which is slow to begin."""

Piece = Callable[[int, int], Tensor]
"""Values of the gradient from one place to another, flat, on the parameter's device."""


@dataclass(frozen=True, slots=True)
class Step:
    """`number`: how many there have been with this one. `decay` is that of this parameter."""

    number: int
    rate: float
    decay: float


class Update(Protocol):
    """One kind of optimizer over one parameter."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Its tensors by kind (`FIRST_MOMENT` and the like)."""
        ...

    def apply(self, gradient: Piece, step: Step) -> None:
        """Change the parameter and the state."""
        ...

    def turn_to(self, parameter: nn.Parameter) -> None:
        """Change this parameter from now on, which has the values of the one so far. The state stays."""
        ...


class AdamW:
    """Moments in float32."""

    def __init__(self, parameter: nn.Parameter, spec: OptimizerSpec) -> None:
        self._parameter, self._spec = parameter, spec
        self._first, self._second = _flat_zeros(parameter), _flat_zeros(parameter)

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Update`."""
        shape = self._parameter.shape
        return {FIRST_MOMENT: self._first.view(shape), SECOND_MOMENT: self._second.view(shape)}

    def apply(self, gradient: Piece, step: Step) -> None:
        """See `Update`."""
        weights = _flat(self._parameter)
        for start, stop in spans(len(weights), _most(weights)):
            moments = self._first[start:stop], self._second[start:stop]
            adamw_step(weights[start:stop], gradient(start, stop), moments, self._spec, step)

    def turn_to(self, parameter: nn.Parameter) -> None:
        """See `Update`."""
        self._parameter = parameter


def adamw_step(weights: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], spec: OptimizerSpec, step: Step) -> None:
    """torch's AdamW over flat tensors of one size, in place."""
    first, second = moments
    with torch.no_grad():
        adamw(
            [weights],
            [gradient],
            [first],
            [second],
            [],
            [torch.tensor(float(step.number - 1))],
            foreach=False,
            amsgrad=False,
            beta1=spec.beta1,
            beta2=spec.beta2,
            lr=step.rate,
            weight_decay=step.decay,
            eps=spec.epsilon,
            maximize=False,
        )


class AdamW8Bit:
    """Moments in eight bits (`eight_bits`), the second as its root, which has half as many decades."""

    def __init__(self, parameter: nn.Parameter, spec: OptimizerSpec) -> None:
        self._parameter, self._spec = parameter, spec
        count, device = parameter.numel(), parameter.device
        self._codes = {kind: torch.zeros(count, dtype=torch.uint8, device=device) for kind in CODES}
        self._scales = {kind: torch.ones(blocks_of(count), device=device) for kind in SCALES}

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Update`."""
        return {kind: codes.view(self._parameter.shape) for kind, codes in self._codes.items()} | self._scales

    def apply(self, gradient: Piece, step: Step) -> None:
        """See `Update`."""
        weights = _flat(self._parameter)
        chance = [chances(min(PIECE_VALUES, len(weights)), step.number, salt, weights.device) for salt in range(len(CODES))]
        for start, stop in spans(len(weights)):  # on all devices: what is drawn goes by the place in a piece
            blocks = slice(start // BLOCK_VALUES, blocks_of(stop))
            kept = [(self._codes[c][start:stop], self._scales[s][blocks]) for c, s in zip(CODES, SCALES, strict=True)]
            first, second = decode(*kept[0]), decode(*kept[1]).square_()
            adamw_step(weights[start:stop], gradient(start, stop), (first, second), self._spec, step)
            found = encode(first, chance[0], never_zero=False), encode(second.sqrt_(), chance[1], never_zero=True)
            for (codes, scales), (new_codes, new_scales) in zip(kept, found, strict=True):
                codes.copy_(new_codes)
                scales.copy_(new_scales)

    def turn_to(self, parameter: nn.Parameter) -> None:
        """See `Update`."""
        self._parameter = parameter


class Adafactor:
    """torch's own. Of a matrix it needs all gradients at once; what it keeps of it is a row and a column."""

    def __init__(self, parameter: nn.Parameter, spec: OptimizerSpec) -> None:
        self._parameter = parameter
        self._torch = torch.optim.Adafactor([parameter], lr=spec.learning_rate)
        self._torch.state[parameter] = {"step": torch.tensor(0.0)}
        if parameter.dim() < 2:
            self._torch.state[parameter]["variance"] = torch.zeros_like(parameter, requires_grad=False)
            return
        rows, columns = list(parameter.shape), list(parameter.shape)
        rows[-1] = columns[-2] = 1
        self._torch.state[parameter] |= {"row_var": parameter.new_zeros(rows), "col_var": parameter.new_zeros(columns)}

    @property
    def state(self) -> dict[str, Tensor]:
        """See `Update`."""
        state = self._torch.state[self._parameter]
        return {ours: state[theirs] for theirs, ours in _ADAFACTOR.items() if theirs in state}

    def apply(self, gradient: Piece, step: Step) -> None:
        """See `Update`."""
        parameter = self._parameter
        self._torch.state[parameter]["step"].fill_(float(step.number - 1))
        self._torch.param_groups[0].update(lr=step.rate, weight_decay=step.decay)
        parameter.grad = gradient(0, parameter.numel()).view(parameter.shape)
        self._torch.step()  # type: ignore[no-untyped-call]
        parameter.grad = None

    def turn_to(self, parameter: nn.Parameter) -> None:
        """See `Update`."""
        self._torch.state[parameter] = self._torch.state.pop(self._parameter)
        self._torch.param_groups[0]["params"] = [parameter]
        self._parameter = parameter


def update_of(parameter: nn.Parameter, spec: OptimizerSpec) -> Update:
    """The run's optimizer for this parameter; its state is allocated."""
    if spec.kind == "adafactor":
        return Adafactor(parameter, spec)
    in_eight_bits = spec.kind == "adamw_8bit" and parameter.numel() >= EIGHT_BIT_LEAST
    return AdamW8Bit(parameter, spec) if in_eight_bits else AdamW(parameter, spec)


def _flat(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().view(-1)


def _flat_zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(parameter.numel(), device=parameter.device)


def _most(values: Tensor) -> int:
    return PIECE_VALUES if values.device.type == "cpu" else ACCELERATOR_VALUES
