"""Memory for some of a skeleton's weights; the others stay without.

A parameter that is not here is a single zero that looks as large as the parameter: its device and type are right, so the
library's code that asks for them goes on, and it takes no memory. A module outside the decoder layers whose parameters are not
here computes zeros (`doors.zeros_from`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gwtf_p2p.training.model.doors import zeros_from

_SMALL_BUFFER = 4096
"""Buffers of a foreign layer above this many elements are let go: its forward is never run."""


def occupy(model: PreTrainedModel, names: set[str], foreign_layers: tuple[str, ...] = ()) -> None:
    """Give memory on the CPU, not yet filled, to the named parameters of a skeleton; tied ones stay one.

    `foreign_layers` are decoder layers that hand through.
    """
    layers = tuple(f"{name}." for name in foreign_layers)
    _stand_ins(model, names, layers)
    fresh: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if name in names:
            fresh[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
        else:
            fresh[id(parameter)] = _absent(parameter, torch.device("cpu"))
    for module_name, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = fresh[id(parameter)]
        if f"{module_name}.".startswith(layers):
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.numel() > _SMALL_BUFFER:
                    module._buffers[name] = buffer.to("meta")


def move(model: PreTrainedModel, device: torch.device, own: Mapping[str, nn.Parameter]) -> None:
    """Move own weights and all buffers in place."""
    kept = {id(parameter) for parameter in own.values()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in kept:
                parameter.data = parameter.data.to(device)
            else:
                module._parameters[name] = _absent(parameter, device)
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


def _absent(parameter: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=parameter.dtype, device=device).expand(parameter.shape), requires_grad=False)


def _stand_ins(model: nn.Module, names: set[str], layers: tuple[str, ...], prefix: str = "") -> None:
    """A forward of zeros for every module beside the layers that has none of its parameters here."""
    for name, module in model.named_children():
        full = f"{prefix}{name}"
        inside = f"{full}."
        if inside in layers:
            continue
        parameters = [f"{inside}{each}" for each, _ in module.named_parameters()]
        if not parameters:
            continue
        is_way = any(layer.startswith(inside) for layer in layers) or any(each in names for each in parameters)
        if is_way or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            _stand_ins(module, names, layers, inside)
        else:
            module.forward = zeros_from(copy.deepcopy(module).to("meta"))
