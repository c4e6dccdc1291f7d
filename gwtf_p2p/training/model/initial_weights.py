"""Initial weights from the run's seed alone, unit by unit (`skeleton.Unit`).

Each unit draws from its own stream, seeded by (run seed, the unit's name), with the model's real `_init_weights`. So a peer
initialises its own units without building the rest, and the whole model built from the same seed has the same bits in every
unit. What the model's initialiser leaves alone gets torch's own default for its kind of module, else what the constructor
gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.training.model.skeleton import Unit, seeded, unit_parameters, values_of_constructors


def initialise(model: PreTrainedModel, units: Iterable[Unit], seed: int) -> None:
    """Overwrite all weights of the given units, which lie on the CPU, by the run's initial ones.

    A parameter that two units share is drawn by the first. Raises LocalProtocolError when one is left without a value.
    """
    done: set[int] = set()
    left: set[str] = set()
    for unit in units:
        named = unit_parameters(model, unit)
        fresh = {name: parameter for name, parameter in named.items() if id(parameter) not in done}
        if fresh:
            shared = [(p, p.detach().clone()) for p in named.values() if id(p) in done]
            left |= initialise_unit(model, unit, seed)
            with torch.no_grad():
                for parameter, value in shared:
                    parameter.copy_(value)
        done.update(id(parameter) for parameter in fresh.values())
    if left:
        with torch.no_grad():
            for name, value in values_of_constructors(model.config, left).items():
                model.get_parameter(name).copy_(value)
        for name in sorted(left):
            if torch.isnan(model.get_parameter(name)).any():
                raise LocalProtocolError(f"{name}: no initial value from {type(model).__name__}")


def initialise_unit(model: PreTrainedModel, unit: Unit, seed: int) -> set[str]:
    """One unit by the model's initialiser and torch's defaults; returns the names that neither of them gave a value."""
    module = model.get_submodule(unit.name)
    initialiser: Callable[[nn.Module], None] = _nearest(model, unit.name)._init_weights
    named = unit_parameters(model, unit)
    with torch.no_grad():
        for parameter in named.values():
            parameter.fill_(float("nan"))
        with seeded(seed, unit.name):
            if unit.direct:
                initialiser(module)
            else:
                module.apply(initialiser)
        with seeded(seed, f"{unit.name}/defaults"):
            for each in [] if unit.direct else module.modules():
                if type(each).__module__.startswith("torch.nn.") and _unset(each):
                    each.reset_parameters()  # type: ignore[operator]
    return {name for name, parameter in named.items() if torch.isnan(parameter).any()}


def _unset(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return hasattr(module, "reset_parameters") and any(bool(torch.isnan(parameter).any()) for parameter in own)


def _nearest(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The innermost pre-trained model around a module: in a model made of models each part has its own initialiser."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, PreTrainedModel):
            return module
    return model
