"""The balance loss of a mixture's experts, of each decoder layer by itself, where that layer is.

The library's own adds up counts and probabilities over all layers before it multiplies their means: no sum over stages. Here
the same function is asked about each layer alone, and the mean over the layers that have a router is what is trained on: with
one such layer it is the library's to the bit, with several it is another loss, as most programs have it. Its gradient is added
where the layer is; nothing of it travels, and what a data peer reports is the loss without it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import InputError

FIELD = "loss.balance"
_FUNCTION = "load_balancing_loss_func"
_ASKED = ["gate_logits", "num_experts", "top_k", "attention_mask"]


class Balance:
    """Notes what the routers of the layers `own` say in a forward. `weight` is that of the mean over all layers' losses."""

    def __init__(self, model: PreTrainedModel, layers: str, own: range, weight: float, where: str) -> None:
        """`layers` is the dotted name of the decoder layers. Raises InputError: the library has no such loss for this model."""
        self._loss = _function_of(model)
        routers = dict(_routers(model, layers)) if self._loss is not None else {}
        if not routers:
            none = f"expected 0: transformers has no balance loss, per layer, for {model.config.model_type}"
            raise InputError(where, FIELD, none)
        self._weight = weight / len({layer for layer, _ in routers.values()})
        self._noted: list[Tensor] = []
        for module, (layer, place) in routers.items():
            if layer in own:
                module.register_forward_hook(self._hook(place))

    def taken(self) -> Tensor | None:
        """The own layers' part of the loss of the forward that was just done, a scalar with graph; None without a router."""
        noted, self._noted = self._noted, []
        if not noted or self._loss is None:
            return None
        return self._weight * torch.stack([self._loss(logits_NE) for logits_NE in noted]).sum()

    def _hook(self, place: int) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                logits = output[place] if isinstance(output, (tuple, list)) else output
                self._noted.append(logits.flatten(0, -2))

        return note


def _function_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """The library's loss of one layer's logits_NE (N tokens, E experts), as this model's own loss asks for it."""
    function = getattr(sys.modules[type(model).__module__], _FUNCTION, None)
    experts, chosen = (getattr(model, name, None) for name in ("num_experts", "num_experts_per_tok"))
    if function is None or list(inspect.signature(function).parameters) != _ASKED:
        return None
    if not isinstance(experts, int) or not isinstance(chosen, int):
        return None

    def loss(logits_NE: Tensor) -> Tensor:
        found: Tensor = function((logits_NE,), experts, chosen)
        return found

    return loss


def _routers(model: PreTrainedModel, layers: str) -> Iterator[tuple[nn.Module, tuple[int, int]]]:
    """Modules whose output has a router's logits, with the layer's number and their place in it, as the library records."""
    recorders = getattr(model, "_can_record_outputs", None) or {}
    recorder = recorders.get("router_logits")
    if recorder is None:
        recorder = (getattr(model.base_model, "_can_record_outputs", None) or {}).get("router_logits")
    kind, place = getattr(recorder, "target_class", None), getattr(recorder, "index", 0)
    if kind is None:
        return
    for name, module in model.get_submodule(layers).named_modules():
        if isinstance(module, kind) and (getattr(recorder, "layer_name", None) or "") in name:
            yield module, (int(name.partition(".")[0]), place)
