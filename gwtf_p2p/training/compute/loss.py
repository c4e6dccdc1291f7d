"""The loss of a microbatch: mean cross entropy of the next token over tokens that have labels, and what a run adds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gwtf_p2p.protocol.wire.records import LossSpec

NO_LABEL = -100
"""Stands for a token whose label is not learnt."""


def loss_of(logits_BTV: Tensor, labels_BT: Tensor, spec: LossSpec) -> Tensor:
    """A scalar, computed in float32."""
    logits, labels = logits_BTV.flatten(0, 1).float(), labels_BT.flatten()
    loss = functional.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing, ignore_index=NO_LABEL)
    if spec.z:
        counts = labels != NO_LABEL
        squares = torch.logsumexp(logits, dim=-1).square()
        loss = loss + spec.z * (squares * counts).sum() / counts.sum()
    return loss


def summed_loss(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[float, int]:
    """(sum of the plain cross entropy, how many tokens have a label)."""
    logits, labels = logits_BTV.flatten(0, 1).float(), labels_BT.flatten()
    total = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
    return float(total), int((labels != NO_LABEL).sum())
