"""A part of a model whose boundaries are coefficients in a subspace.

Rules.
- A writer's weight W (d along one axis) is computed from the trained Z (k along it) and the basis U before each pass; it keeps
  its name, and Z is what is trained, averaged, checkpointed and downloaded under that name. At the start Z is U^T of the
  library's initial weight.
- A table's weight is the library's initial one, which stays, plus such a product, whose Z starts as zeros. Data peers have
  both; a stage peer has the initial one alone, since it needs only what of a boundary is not sent.
- Turning a hidden state into coefficients and back is done in float32, whatever the part computes in: rounding to bfloat16 in
  the residual stream would not stay in the span.
- What is tied to a table would be held in the subspace, too. The head is to be free, so tied embeddings are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.doors import Doors
from gwtf_p2p.training.model.skeleton import decoder_layers
from gwtf_p2p.training.model.subspace.basis import FIELD, basis, dimensions
from gwtf_p2p.training.model.subspace.writers import kind_of, writers_of

TIED = "model_config.tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class Layout:
    """What is a product in a model: the axis of each writer and of each table, by name; the width d and the dimensions k."""

    width: int
    count: int
    writers: Mapping[str, int]
    tables: Mapping[str, int]

    def shape_of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of what is trained under a name; as it was for what is no product."""
        axis = self.writers.get(name, self.tables.get(name))
        return shape if axis is None else (*shape[:axis], self.count, *shape[axis + 1 :])

    def multiplied(self, name: str, trained: Tensor, basis_dk: Tensor) -> Tensor:
        """The product of what is trained under a name, as large as the library's weight."""
        axis = self.writers.get(name, self.tables.get(name))
        return trained if axis is None else _product(trained, basis_dk, axis)


def layout_of(model: PreTrainedModel, factor: int, where: str = RUN_RECORD, free_from: int | None = None) -> Layout:
    """Of a whole model, which may be without memory; layers from `free_from` on write what they want. Raises InputError that
    says why it cannot be kept in a subspace."""
    found = writers_of(model.config, where)
    prefix = f"{decoder_layers(model, where)[0]}."
    names = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    writers: dict[str, int] = {}
    for name in names:
        if name.startswith(prefix):
            kind = kind_of(name.removeprefix(prefix))
            if kind not in found.known:
                raise InputError(where, FIELD, f"expected none: {name} is of a kind that a small copy of the model has not")
            if kind in found.layers and (free_from is None or int(name.removeprefix(prefix).partition(".")[0]) < free_from):
                writers[name] = found.layers[kind]
    _check_tied(model, {*writers, *found.tables}, where)
    first = next(iter(found.tables))
    width = names[first].shape[found.tables[first]]
    return Layout(width, dimensions(width, factor, where), writers, dict(found.tables))


class Products:
    """The products among those weights of a model that are here. `trained` maps their names to what is trained of them."""

    def __init__(self, model: PreTrainedModel, layout: Layout, own: set[str], seed: int) -> None:
        self.basis_dk = basis(layout.width, layout.count, seed)
        self.trained: dict[str, nn.Parameter] = {}
        self._model, self._layout = model, layout
        self._drawn: dict[str, Tensor] = {}
        for name in [name for name, _ in model.named_parameters() if name in own]:
            if name in layout.writers or name in layout.tables:
                self._replace(name)

    def to(self, device: torch.device) -> None:
        """Move in place what is not the model's any more."""
        self.basis_dk = self.basis_dk.to(device)
        self._drawn = {name: tensor.to(device) for name, tensor in self._drawn.items()}
        for parameter in self.trained.values():
            parameter.data = parameter.data.to(device)

    def multiply(self) -> None:
        """Put the products in their weights' places, with their graph where one is wanted: before each pass."""
        with float32_on(self.basis_dk.device):
            for name, trained in self.trained.items():
                weight = self._layout.multiplied(name, trained, self.basis_dk)
                self._put(name, weight + self._drawn[name] if name in self._drawn else weight)

    def put_tables(self) -> None:
        """Put the tables as they were drawn in their places."""
        for name, tensor in self._drawn.items():
            self._put(name, tensor)

    def _replace(self, name: str) -> None:
        initial = self._model.get_parameter(name).detach()
        axis = self._layout.writers.get(name, self._layout.tables.get(name))
        assert axis is not None
        start = torch.tensordot(initial, self.basis_dk, dims=([axis], [0])).movedim(-1, axis).contiguous()
        if name in self._layout.tables:
            self._drawn[name] = initial
            start.zero_()
        self.trained[name] = nn.Parameter(start)
        holder, _, last = name.rpartition(".")
        del self._model.get_submodule(holder)._parameters[last]
        self._put(name, initial)

    def _put(self, name: str, tensor: Tensor) -> None:
        holder, _, last = name.rpartition(".")
        # Not a parameter any more, and no buffer: an attribute, which the library's forward finds under the same name.
        self._model.get_submodule(holder).__dict__[last] = tensor


class Subspace:
    """How a part reads and writes its boundaries."""

    def __init__(self, products: Products, doors: Doors) -> None:
        self.products, self._doors = products, doors

    def known(self, tokens_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """hidden_BTd that every peer knows of these tokens: what the tables were at the start."""
        self.products.put_tables()
        with torch.no_grad():
            return self._doors.embed(tokens_BT, positions_BT)[0].float()

    def coefficients(self, hidden_BTd: Tensor, known_BTd: Tensor) -> Tensor:
        """coefficients_BTk of a hidden state."""
        basis_dk = self.products.basis_dk
        with float32_on(basis_dk.device):
            return (hidden_BTd.float() - known_BTd) @ basis_dk

    def hidden(self, coefficients_BTk: Tensor, known_BTd: Tensor) -> Tensor:
        """hidden_BTd of coefficients."""
        basis_dk = self.products.basis_dk
        with float32_on(basis_dk.device):
            return known_BTd + coefficients_BTk.float() @ basis_dk.T


def _product(trained: Tensor, basis_dk: Tensor, axis: int) -> Tensor:
    weight: Tensor = torch.tensordot(trained, basis_dk, dims=([axis], [1])).movedim(-1, axis).contiguous()
    return weight


def float32_on(device: torch.device) -> torch.autocast:
    """Whatever else is rounded to, within it nothing is."""
    return torch.autocast(device.type, enabled=False)


def _check_tied(model: PreTrainedModel, names: set[str], where: str) -> None:
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for tied in holders.values():
        if len(tied) > 1 and names & set(tied):
            expected = f"expected false with {FIELD}: {' and '.join(tied)} are one weight, and the head is to be free"
            raise InputError(where, TIED, expected)
