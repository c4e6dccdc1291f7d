"""Initial weights from the run's seed alone, part by part.

A unit is one embedding, one decoder layer, the final norm or the output head. Each unit draws from its own stream, seeded by
(run seed, the unit's name), with the model's real `_init_weights`. So a peer initialises its own units without building the
rest, and the whole model built from the same seed has the same bits in every unit.

The draws run on the CPU in float32 whatever device the part goes to. They are torch's: bit for bit equal wherever the same
torch release runs with the same vector instructions; elsewhere they may differ in the last place, which the state hash shows.
The global RNG is left as it was found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import LocalProtocolError


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Within the block torch's CPU generator stands at the start of the stream (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every accelerator, and nothing restores those.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def initialise_unit(unit: nn.Module, name: str, seed: int, model: PreTrainedModel) -> None:
    """Overwrite all weights of a CPU module by the run's initial ones; `model` is only asked for its `_init_weights`.

    Raises LocalProtocolError when the model's initialiser leaves a parameter out.
    """
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.fill_(float("nan"))
        for module in unit.modules():
            # Older transformers initialise norms in their constructors only.
            if "Norm" in type(module).__name__:
                _fill(getattr(module, "weight", None), 1.0)
                _fill(getattr(module, "bias", None), 0.0)
        with seeded(seed, name):
            unit.apply(model._init_weights)
    for parameter_name, parameter in unit.named_parameters():
        if torch.isnan(parameter).any():
            raise LocalProtocolError(f"{name}.{parameter_name}: no initial value from {type(model).__name__}")


def _fill(parameter: torch.Tensor | None, value: float) -> None:
    if parameter is not None:
        parameter.fill_(value)
