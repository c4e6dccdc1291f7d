"""The unsplit model of a run in a subspace, and the ordinary model that its weights are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.initial_weights import initialise
from gwtf_p2p.training.model.materialise import occupy
from gwtf_p2p.training.model.skeleton import build_skeleton, decoder_layers, unit_parameters, units_of
from gwtf_p2p.training.model.structure import whole_model
from gwtf_p2p.training.model.subspace.basis import basis
from gwtf_p2p.training.model.subspace.parametrised import Products, layout_of


class WholeInSubspace:
    """The unsplit model of the same weights: the control of every part. `parameters` are what is trained, by name."""

    def __init__(
        self, config: PretrainedConfig, factor: int, seed: int, where: str = RUN_RECORD, free_from: int | None = None
    ) -> None:
        """On the CPU, with the run's initial weights. Raises InputError."""
        self.model = whole_model(config, seed, where)
        names = [name for name, _ in self.model.named_parameters()]
        self.layout = layout_of(self.model, factor, where, free_from)
        self.products = Products(self.model, self.layout, set(names), seed)
        found: dict[str, nn.Parameter] = {**dict(self.model.named_parameters()), **self.products.trained}
        self.parameters = {name: found[name] for name in names}

    def to(self, device: torch.device) -> None:
        """Move in place."""
        self.model.to(device)  # type: ignore[arg-type]
        self.products.to(device)

    def logits(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """logits_BTV."""
        self.products.multiply()
        positions = {} if positions_BT is None else {"position_ids": positions_BT}
        logits_BTV: Tensor = self.model(input_ids=tokens_BT, use_cache=False, **positions).logits
        return logits_BTV


def multiplied_out(
    trained: Mapping[str, Tensor], config: PretrainedConfig, factor: int, seed: int, free_from: int | None = None
) -> dict[str, Tensor]:
    """Weights of the ordinary model, by name, of some of what is trained: products multiplied out, tables as drawn added."""
    model = build_skeleton(config)
    layout = layout_of(model, factor, free_from=free_from)
    basis_dk = basis(layout.width, layout.count, seed)
    found = {name: layout.multiplied(name, tensor, basis_dk) for name, tensor in trained.items()}
    tables = layout.tables.keys() & trained.keys()
    units = [unit for unit in units_of(model, decoder_layers(model)[0]) if unit_parameters(model, unit).keys() & tables]
    occupy(model, {name for unit in units for name in unit_parameters(model, unit)})
    initialise(model, units, seed)
    return found | {name: found[name] + model.get_parameter(name).detach() for name in tables}
