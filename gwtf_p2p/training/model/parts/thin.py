"""The part of a data peer that holds no weights (`thin_data_peers` of a run)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gwtf_p2p.training.model.config import vocabulary_of
from gwtf_p2p.training.model.doors import Payload, document_positions
from gwtf_p2p.training.model.parts.spec import PartSpec, positions_tensor


class ThinDataPart:
    """A data part without weights: ids and labels go out, a loss comes back."""

    def __init__(self, spec: PartSpec) -> None:
        self.end_token = spec.end_token
        self.parameters: dict[str, nn.Parameter] = {}
        positions = (positions_tensor(spec),) if spec.end_token >= 0 else ()
        self.boundaries = spec.boundaries(positions, vocabulary_of(spec.model_config))

    def to(self, device: torch.device) -> ThinDataPart:
        """Nothing is moved."""
        return self

    def opened(self, tokens_BT: Tensor, labels_BT: Tensor) -> Payload:
        """The payload of stage 1."""
        last = () if self.end_token < 0 else (document_positions(tokens_BT, self.end_token),)
        return (tokens_BT, labels_BT, *last)
