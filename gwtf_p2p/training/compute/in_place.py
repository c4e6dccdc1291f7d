"""A backward whose gradients go into the sum one parameter after the other, so that there is never a second set of them.

While it goes on, a parameter's `grad` is its sum: torch adds to it in place, without a copy. What is not finite shows when it
is in the sum already: then the sum is of no use, and whoever asked makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gwtf_p2p.training.compute.gradients import all_finite


class InPlace:
    """Of one part; `sums` are its gradient sums by the parameters' names. `autograd.grad` is as ever: it adds to nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> None:
        self._sums = {name: (parameter, sums[name]) for name, parameter in parameters.items()}
        self._is_running = False
        self._added: list[Tensor] = []
        for parameter in parameters.values():
            parameter.register_hook(self._look)  # type: ignore[no-untyped-call]

    def backward(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], leaves: Sequence[Tensor], sign: int = 1
    ) -> tuple[list[Tensor | None], bool]:
        """Add (or, with sign -1, subtract) every parameter's gradient. Returns the leaves' own, None where there is none, and
        whether all that was added is finite (false also where it only looks otherwise: where a sum of it overflows)."""
        parameters = [parameter for parameter, _ in self._sums.values()]
        self._is_running, self._added = True, []
        self._turn(sign)
        try:
            for parameter, total in self._sums.values():
                parameter.grad = total
            if outputs:
                torch.autograd.backward(outputs, gradients, inputs=[*leaves, *parameters])
            return [leaf.grad for leaf in leaves], all_finite(self._added)
        finally:
            self._is_running, self._added = False, []
            for tensor in (*leaves, *parameters):
                tensor.grad = None
            self._turn(sign)

    def _turn(self, sign: int) -> None:
        """s - g is -(-s + g), to the bit."""
        for _, total in self._sums.values() if sign < 0 else ():
            total.neg_()

    def _look(self, gradient: Tensor) -> None:
        if self._is_running:
            self._added.append(gradient.sum(dtype=torch.float32))
