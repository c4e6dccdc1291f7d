"""Which part of which model a peer holds, and what crosses its boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from gwtf_p2p.protocol.wire.records import AdapterSpec, BoundaryTensor, RunRecord, WeightsSpec
from gwtf_p2p.protocol.wire.run_parts import LABELS, LOSS, POSITIONS, TOKENS, at_ends
from gwtf_p2p.training.model.config import RUN_RECORD
from gwtf_p2p.training.model.parts.layer_split import LayerSplit, free_from
from gwtf_p2p.training.model.subspace.parametrised import Layout, layout_of


@dataclass(frozen=True, slots=True)
class Boundaries:
    """What comes into a part and what goes out of it forwards; backwards their gradients, the other way."""

    input: tuple[BoundaryTensor, ...]
    output: tuple[BoundaryTensor, ...]
    below: Mapping[str, int] = field(default_factory=dict)
    """What integers of a name have to be below: ids that no table has come from nobody who means well. Of a loss, how many
    tokens it is of."""


@dataclass(frozen=True, slots=True)
class PartSpec:
    """Which part of which model: `stage` 0 is the data peers', stage k holds the layers `layer_split[k - 1]`.

    `batch` is (microbatch size, sequence length). `weights` are what it starts from, whose hash has to be `weights_hash` unless
    that is empty; without a source it starts from the seed. `adapters`: they alone are trained. With an `end_token` (0 or more)
    no token sees beyond the document that it is of (`doors`). `balance` is the weight of the experts' balance loss (`balance`).
    With a `subspace` a boundary has so many times fewer values than the model is wide (`subspace`). `thin`: data peers hold
    no weights.
    """

    model_config: Mapping[str, Any]
    layer_split: LayerSplit
    stage: int
    seed: int
    batch: tuple[int, int] = (1, 16)
    weights: WeightsSpec = field(default_factory=WeightsSpec)
    weights_hash: str = ""
    adapters: AdapterSpec = field(default_factory=AdapterSpec)
    end_token: int = -1
    balance: float = 0.0
    subspace: int = 0
    thin: bool = False

    @property
    def holds_embedding(self) -> bool:
        """What turns token ids into hidden states is in this part."""
        return self.stage == (1 if self.thin else 0)

    @property
    def holds_head(self) -> bool:
        """Norm, head and loss are in this part."""
        return self.stage == (len(self.layer_split) if self.thin else 0)

    def layout(self, model: PreTrainedModel, where: str = RUN_RECORD) -> Layout:
        """What is a product in a subspace; what the head's stage adds crosses no boundary, and is free. Raises InputError."""
        return layout_of(model, self.subspace, where, free_from(self.layer_split, self.thin))

    def boundaries(self, between: tuple[BoundaryTensor, ...], vocabulary: int) -> Boundaries:
        """Where boundaries between stages are like this."""
        below = {TOKENS: vocabulary, LABELS: vocabulary, POSITIONS: self.batch[1], LOSS: math.prod(self.batch) + 1}
        out, back = at_ends(between, self.batch) if self.thin else (between, between)
        if not self.stage:
            return Boundaries(back, out, below)
        return Boundaries(out if self.holds_embedding else between, back if self.holds_head else between, below)

    @classmethod
    def of(cls, run: RunRecord, stage: int) -> PartSpec:
        split = tuple((a, b) for a, b in run.layer_split)
        return cls(
            run.built_config,
            split,
            stage,
            run.seed,
            batch=(run.microbatch_size, run.sequence_length),
            weights=run.weights,
            weights_hash=run.weight_hashes[stage] if run.weight_hashes else "",
            adapters=run.adapters,
            end_token=run.end_token if run.attention == "document" else -1,
            balance=run.loss.balance,
            subspace=run.subspace,
            thin=run.thin_data_peers,
        )


def positions_tensor(spec: PartSpec) -> BoundaryTensor:
    """Travels last where no token sees beyond its document."""
    return BoundaryTensor(POSITIONS, spec.batch, is_integer=True)
