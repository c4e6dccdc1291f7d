"""The executor of a data peer without weights: it hands out ids and labels, and hears of losses (`thin_data_peers`).

The protocol is that of any data peer: the gradient that goes back into the last stage is that of the loss by itself, one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.records import LossSpec
from gwtf_p2p.protocol.wire.run_parts import LOSS_GRADIENT
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.data_executor import DataExecutor
from gwtf_p2p.training.compute.loss import NO_LABEL
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.parts.thin import ThinDataPart
from gwtf_p2p.training.model.split import DataPart


def data_executor(part: DataPart | ThinDataPart, config: ExecutorConfig, loss: LossSpec | None = None) -> DataExecutor:
    """Of either kind of data part."""
    return ThinDataExecutor(part, config, loss) if isinstance(part, ThinDataPart) else DataExecutor(part, config, loss)


class ThinDataExecutor(DataExecutor):
    """See `DataExecutor`."""

    part: ThinDataPart

    def evaluate_loss(self, tokens_BT: Tensor, activation: Payload, labels_BT: Tensor) -> tuple[float, int]:
        """As the last stage says. Raises RemoteProtocolError for what no loss of these labels can be."""
        _, total, count = self._received(activation, self._input)[0].tolist()
        labelled = int((labels_BT != NO_LABEL).sum())
        if not (total >= 0 and count == labelled):
            raise RemoteProtocolError(f"expected the loss of {labelled} tokens, got {total:.3g} of {count:.3g}")
        return total, labelled

    def _embedded(self, tokens_BT: Tensor, labels_BT: Tensor | None = None) -> Payload:
        assert labels_BT is not None, "they are all that goes out beside the ids"
        return self.part.opened(tokens_BT, labels_BT.to(tokens_BT.device))

    def _head_gradients(
        self, tokens_BT: Tensor, payload: Payload, labels_BT: Tensor
    ) -> tuple[float, Tensor, Mapping[str, Tensor]]:
        loss = payload[0]
        return float(loss[0]), loss.new_tensor(LOSS_GRADIENT), {}

    def _embedding_gradients(self, tokens_BT: Tensor, gradient: Payload) -> dict[str, Tensor]:
        self._received(gradient, self._output, "gradient")
        return {}
