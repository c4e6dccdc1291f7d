"""A backward whose gradients go into the sum one parameter after the other, so that there is never a second set of them.

What is not finite shows when it is in the sum already: then the sum is of no use, and whoever asked makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gwtf_p2p.training.compute.gradients import all_finite


class InPlace:
    """Of one part; `sums` are its gradient sums by the parameters' names. `autograd.grad` is as ever: it adds to nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> None:
        self._parameters = list(parameters.values())
        self._sign = 0
        self._added: list[Tensor] = []
        for name, parameter in parameters.items():
            hook = partial(self._add, sums[name])
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def backward(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], leaves: Sequence[Tensor], sign: int = 1
    ) -> tuple[list[Tensor | None], bool]:
        """Add (or, with sign -1, subtract) every parameter's gradient. Returns the leaves' own, None where there is none, and
        whether all that was added is finite (false also where it only looks otherwise: where a sum of it overflows)."""
        self._sign, self._added = sign, []
        try:
            torch.autograd.backward(outputs, gradients, inputs=[*leaves, *self._parameters])
            return [leaf.grad for leaf in leaves], all_finite(self._added)
        finally:
            self._sign, self._added = 0, []
            for tensor in (*leaves, *self._parameters):
                tensor.grad = None

    def _add(self, total: Tensor, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or not self._sign:
            return
        self._added.append(gradient.sum(dtype=torch.float32))
        total.add_(gradient, alpha=self._sign)
        parameter.grad = None
