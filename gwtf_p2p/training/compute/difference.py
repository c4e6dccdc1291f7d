"""How far two results of one stage are apart, as a share of what the stage changes.

A stage adds to the residual stream, so the whole of its output says little of what it did: a peer that hands on its input would
be off by a few per cent of the output, and by all of the change.

What came has been rounded by a codec. Where two results lie on two sides of a step of a coarse format they come out a whole
step apart, though neither is further from the truth than the other. So what counts is how much further the one that came is
from the own result than the own result is when it is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def relative_difference(
    other: Sequence[Tensor], own: Sequence[Tensor], own_sent: Sequence[Tensor], before: Sequence[Tensor]
) -> float:
    """How far `other`, as it came, is from `own`, beyond what `own_sent` is: the own result encoded and decoded again.

    That is sqrt(|other - own|^2 - |own_sent - own|^2) / |own - before| over all values of all tensors, in float64. 0 where
    nothing differs, inf where something does though nothing changes, or where integers differ.
    """
    apart = changed = 0.0
    for theirs, ours, sent, given in zip(other, own, own_sent, before, strict=True):
        if not ours.is_floating_point():
            if not torch.equal(theirs, sent):
                return math.inf
            continue
        if not torch.equal(theirs, sent):
            apart += _squared(theirs, ours) - _squared(sent, ours)
        changed += _squared(ours, given)
    if apart <= 0.0:
        return 0.0
    return math.sqrt(apart / changed) if changed > 0.0 else math.inf


def by_tokens(loss: Tensor, tokens: float) -> Tensor:
    """What a last stage says of a loss, the mean times this many tokens: beside the sum over all tokens a mean that is not true
    would be no difference. A loss near 0 is judged as one of 1 would be, as the tokens are among what is said."""
    return loss * loss.new_tensor([max(1.0, tokens), 1.0, 1.0])


def _squared(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().sum())
