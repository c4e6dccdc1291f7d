"""A model without memory for its weights, and where its decoder layers are.

Rules.
- Parameters are on torch's meta device, buffers (rotary tables, masks, routing biases) on the CPU as the library computes them,
  because no checkpoint holds most of them and the meta device would lose their values.
- The decoder layers are found by structure: the `ModuleList` with as many members as the config has layers, else the one with
  most parameters. There is no table of names.
- A *unit* is a decoder layer, or a module beside the way from the model to the list of layers (an embedding, the final norm,
  the head); the few parameters that lie directly on that way are a unit each. Initial weights are drawn unit by unit.
- Draws are from named streams (`seeded`), so that every part of a model draws its own: torch's on the CPU in float32, whatever
  device the part goes to, bit for bit equal wherever the same torch release runs with the same vector instructions; elsewhere
  they may differ in the last place, which the state hash shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import CONFIG_ERRORS, RUN_RECORD, one_line

_SENSES = frozenset(["vision", "visual", "image", "audio", "speech"])
"""A model of text and more has lists of layers for the rest, too; they are no decoders of text."""

_DRAWS = frozenset(
    [
        "normal_",
        "uniform_",
        "trunc_normal_",
        "exponential_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "xavier_normal_",
        "orthogonal_",
    ]
)

Place = Callable[[nn.Parameter], nn.Parameter]
Draw = Callable[[Tensor, Callable[[Tensor], Any]], None]
"""Is told of a parameter on the meta device, and of what would draw it if it were a tensor with memory."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Part of a model that draws its initial weights on its own.

    `name` is the module's dotted name. `layer` is the decoder layer's number, -1 for what the data peers hold. With `direct`
    only the module's own parameters belong to the unit, not those of its children.
    """

    name: str
    layer: int = -1
    direct: bool = False


def build_skeleton(config: PretrainedConfig, where: str = RUN_RECORD) -> PreTrainedModel:
    """The whole model: every module and buffer, no memory for weights. Raises InputError."""
    return _build(config, _on_meta, where)


def values_of_constructors(config: PretrainedConfig, names: set[str], where: str = RUN_RECORD) -> dict[str, torch.Tensor]:
    """What the library's constructors give to parameters that its initialiser leaves alone; NaN where they give nothing.

    A parameter that a constructor draws after it has registered it is drawn from a stream of its own, so that it is the same
    whatever else is wanted. Raises InputError.
    """
    order: list[int] = []

    def count(parameter: nn.Parameter) -> nn.Parameter:
        order.append(id(placed := _on_meta(parameter)))
        return placed

    model = _build(config, count, where)
    position = {identity: number for number, identity in enumerate(order)}
    wanted = {position[id(model.get_parameter(name))]: name for name in names}
    values: dict[str, torch.Tensor] = {}
    placed: list[nn.Parameter] = []
    waiting: dict[int, str] = {}

    def keep(parameter: nn.Parameter) -> nn.Parameter:
        name = wanted.get(len(placed))
        placed.append(there := _on_meta(parameter))  # held, so that no other has its id
        if name is not None:
            values[name] = parameter.detach().clone()
            waiting[id(there)] = name
        return there

    def draw(parameter: Tensor, how: Callable[[Tensor], Any]) -> None:
        name = waiting.get(id(parameter))
        if name is not None:
            with seeded(0, f"construction of {name}"):
                how(values[name])

    with _unset_is_nan():
        _build(config, keep, where, draw)
    return values


def decoder_layers(model: PreTrainedModel, where: str = RUN_RECORD) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its dotted name. Raises InputError for a model without one."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 0}
    outermost = {name: module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    outermost = {name: module for name, module in outermost.items() if not _SENSES & set(re.split(r"[._]", name))} or outermost
    stated = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    fitting = {name: module for name, module in outermost.items() if len(module) == stated} or outermost
    if not fitting:
        raise InputError(
            where, "model_config", f"expected a model with a list of decoder layers, {type(model).__name__} has none"
        )
    name = max(fitting, key=lambda each: sum(p.numel() for p in fitting[each].parameters()))
    return name, fitting[name]


def units_of(model: PreTrainedModel, layers: str) -> tuple[Unit, ...]:
    """All units with parameters, in the model's own order; each parameter is in the first unit that has it."""
    way = {layers[:end] for end in (0, *(at for at, letter in enumerate(layers) if letter == "."))}
    found: list[Unit] = []

    def visit(name: str, module: nn.Module) -> None:
        if name in way:
            if any(True for _ in module.parameters(recurse=False)):
                found.append(Unit(name, direct=True))
            for child_name, child in module.named_children():
                visit(f"{name}.{child_name}".lstrip("."), child)
        elif name == layers:
            found.extend(Unit(f"{name}.{number}", number) for number in range(len(module)))  # type: ignore[arg-type]
        elif any(True for _ in module.parameters()):
            found.append(Unit(name))

    visit("", model)
    return tuple(found)


def unit_parameters(model: PreTrainedModel, unit: Unit) -> dict[str, nn.Parameter]:
    """Whole-model names of a unit's parameters."""
    module = model.get_submodule(unit.name)
    prefix = f"{unit.name}." if unit.name else ""
    return {f"{prefix}{name}": parameter for name, parameter in module.named_parameters(recurse=not unit.direct)}


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.is_meta:
        return parameter  # a tied one, registered a second time
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _build(config: PretrainedConfig, place: Place, where: str, draw: Draw | None = None) -> PreTrainedModel:
    """The model whose parameters are put where `place` says as soon as a constructor registers them; `draw` is asked to draw
    one that is on the meta device."""
    try:
        with _placing(place), seeded(0, "construction"), _NoDrawsOnMeta(draw):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except CONFIG_ERRORS as error:
        raise InputError(where, "model_config", one_line(error)) from error
    model.train()
    return model


class _NoDrawsOnMeta(TorchFunctionMode):
    """Random values for a parameter on the meta device are not asked for: there they cost milliseconds each, for nothing."""

    def __init__(self, draw: Draw | None) -> None:
        super().__init__()
        self._draw = draw

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                if self._draw is not None:
                    others = {name: value for name, value in kwargs.items() if name != "tensor"}
                    self._draw(tensor, lambda real: func(real, *args[1:], **others))
                return tensor
        return func(*args, **kwargs)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Within the block torch's CPU generator stands at the start of the stream (seed, name); afterwards as it was found."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every accelerator, and nothing restores those.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


@contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Memory that nobody has written to is not what was in it before, which would be another model on every peer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _placing(place: Place) -> Iterator[None]:
    def placed(_module: nn.Module, _name: str, parameter: nn.Parameter) -> Any:
        return place(parameter)

    handle = register_module_parameter_registration_hook(placed)
    try:
        yield
    finally:
        handle.remove()
