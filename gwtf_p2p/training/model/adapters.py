"""Low-rank adapters on a part of a model, as `peft` builds them.

Rules.
- Only own modules get adapters: a target names the end of a module's dotted name, and of the modules so named those whose
  weights are here are wrapped. Everything else of the part is frozen.
- An adapter's first matrix is drawn from the stream (run seed, its name), by peft's own rule (uniform, as Kaiming's), the
  second is zero, so the first forward is the pre-trained model's. All peers of a stage begin alike.
- No dropout: a microbatch that is computed again on another peer has to give the same numbers.

`peft` is imported where adapters are asked for; a run without them needs none.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import AdapterSpec
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.skeleton import seeded

NAME = "default"
_FIELD = "adapters.targets"


def lora_config(spec: AdapterSpec, targets: list[str] | None = None, **more: Any) -> Any:
    """Peft's settings of these adapters, for the whole model unless modules are listed. Raises InputError without peft."""
    try:
        import peft
    except ImportError as error:
        raise InputError("run record", "adapters", "expected the package peft: pip install 'gwtf-p2p[adapters]'") from error
    chosen = list(spec.targets) if targets is None else targets
    alpha: Any = spec.alpha  # peft says int and takes any number
    return peft.LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=chosen, lora_dropout=0.0, bias="none", **more)


def add_adapters(model: PreTrainedModel, spec: AdapterSpec, own: set[int], seed: int | None) -> set[int]:
    """Wrap the targets whose weights are among `own` (ids of parameters), freeze the rest; returns ids of the new parameters.

    Without a seed they take no memory. Raises InputError for a target that the model does not have, or that has no adapter.
    """
    chosen = own_targets(model, spec, own)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not chosen:
        return set()
    config = lora_config(spec, chosen)
    import peft

    before = {id(parameter) for parameter in model.parameters()}
    try:
        with seeded(0, "adapters"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers that keep their matrix transposed: peft then does the right thing
            peft.inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=seed is None)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(
            RUN_RECORD, _FIELD, f"expected modules that take adapters ({str(error).splitlines()[0][:160]})"
        ) from error
    fresh = {name: p for name, p in model.named_parameters() if id(p) not in before}
    if seed is not None:
        for name, parameter in fresh.items():
            _draw(name, parameter, seed)
    return {id(parameter) for parameter in fresh.values()}


def own_targets(model: PreTrainedModel, spec: AdapterSpec, own: set[int]) -> list[str]:
    """Dotted names of the own modules that get an adapter. Raises InputError for a target that matches nothing at all."""
    chosen: list[str] = []
    for target in spec.targets:
        named = [(name, each) for name, each in model.named_modules() if name == target or name.endswith(f".{target}")]
        if not named:
            leaves = sorted({name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, nn.Linear)})
            raise InputError(RUN_RECORD, _FIELD, f"{target!r} is no module of the model; linear ones are {', '.join(leaves)}")
        chosen += [name for name, each in named if any(id(p) in own for p in each.parameters(recurse=False))]
    return sorted(set(chosen))


def peft_name(name: str) -> str:
    """What peft's own files call an adapter's parameter."""
    return f"base_model.model.{name.replace(f'.{NAME}', '')}"


def _draw(name: str, parameter: nn.Parameter, seed: int) -> None:
    parts = name.split(".")
    with torch.no_grad(), seeded(seed, name):
        if "lora_embedding_A" in parts:
            nn.init.zeros_(parameter)  # peft's rule for embeddings: this one is zero, the other one drawn
        elif "lora_embedding_B" in parts:
            nn.init.normal_(parameter)
        elif "lora_A" in parts:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        else:
            nn.init.zeros_(parameter)
