"""How many bytes what peers send each other takes on the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import Stage
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.view.hop_cost import HopBytes
from gwtf_p2p.protocol.wire.messages import Forward, TensorMessage
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.protocol.wire.tensor_formats import AVERAGE_FORMATS, FLOAT32, FORMATS, LOW_RANK, TensorFormat, average_bytes
from gwtf_p2p.simulation.scenario.scenario import ModelSpec

FLOAT32_BYTES = 4
SYNCHRONOUS = ReplicaSync()
TYPICAL = (1024, 1024)
"""Of a matrix."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one boundary activation, of its gradient, of one stage's gradient in an average, and of a stage's weights with
    their optimizer, of which `weights_bytes` are the weights; `sync` says in which iterations what is averaged."""

    activation_bytes: int
    gradient_bytes: int
    average_bytes: int
    state_bytes: int
    stages: int = 0
    end_bytes: int | None = None
    sync: ReplicaSync = SYNCHRONOUS
    weights_bytes: int = 0

    @staticmethod
    def of(model: ModelSpec, wire: WireSpec, subspace: int = 0, thin: bool = False, sync: ReplicaSync = SYNCHRONOUS) -> Sizes:
        """Where tensors travel in these formats; a scenario states the bytes of float32. Weights stay float32.

        With a `subspace` so many times fewer values cross a boundary, and forwards the ids of their tokens, of a model as wide
        as `TYPICAL`. Between thin data peers and stages ids and labels cross alone, and labels travel with the activations.
        """
        float32_bytes, ids = model.microbatch_bytes, 0
        a_number_each = -(-float32_bytes // TYPICAL[1])
        if subspace:
            ids = a_number_each
            float32_bytes = -(-float32_bytes // (FLOAT32_BYTES * subspace)) * FLOAT32_BYTES
        ids += a_number_each if thin else 0
        return Sizes(
            ids + encoded_bytes(float32_bytes, FORMATS[wire.activations]),
            encoded_bytes(float32_bytes, FORMATS[wire.gradients]),
            averaged_bytes(model.stage_gradient_bytes, wire),
            model.stage_state_bytes,
            model.stages,
            2 * a_number_each if thin else None,
            sync,
            min(model.stage_gradient_bytes, model.stage_state_bytes),
        )

    @property
    def hops(self) -> HopBytes:
        """What each hop carries."""
        return HopBytes(self.stages, self.activation_bytes, self.gradient_bytes, self.end_bytes)

    @property
    def both_bytes(self) -> int:
        """What a microbatch takes on a link, there and back."""
        return self.activation_bytes + self.gradient_bytes

    def of_push(self, message: TensorMessage) -> int:
        """Of the tensor that goes with a push."""
        is_forward = isinstance(message, Forward)
        return int(self.hops.forth(message.stage - 1) if is_forward else self.hops.back(message.stage))

    def averaged(self, stage: Stage) -> int:
        """Of a stage's gradient in an average. What data peers hold counts as much as a stage; where they are thin, the first
        and the last stage have it, and fewer layers for that: all stages bear the same (`thin_layer_split`)."""
        return self._held(self.average_bytes, stage)

    def averaged_in(self, stage: Stage, iteration: int) -> int:
        """Of what a stage averages in this iteration: gradients, or one number, or copies."""
        if self.sync.averages_copies(iteration):
            return self._held(self.average_bytes + self.state_bytes, stage)
        return FLOAT32_BYTES if self.sync.is_on else self.averaged(stage)

    def mean_averaged(self, stage: Stage) -> int:
        """The same of an iteration, in the long run."""
        copies = self._held(self.average_bytes + self.state_bytes, stage)
        return copies // self.sync.every if self.sync.is_on else self.averaged(stage)

    def _held(self, size: int, stage: Stage) -> int:
        if self.end_bytes is None:
            return size
        return size * (self.stages + 1) // self.stages if stage > 0 else 0


def averaged_bytes(float32_bytes: int, wire: WireSpec) -> int:
    """Of a stage's gradient. Of its matrices a scenario says nothing; where it matters they count as `TYPICAL`."""
    if wire.averages != LOW_RANK:
        return encoded_bytes(float32_bytes, AVERAGE_FORMATS[wire.averages])
    share = average_bytes([TYPICAL], wire.averages, wire.rank) / FLOAT32.encoded_bytes(math.prod(TYPICAL))
    return math.ceil(share * float32_bytes)


def encoded_bytes(float32_bytes: int, form: TensorFormat) -> int:
    """Of a tensor that takes so many bytes in float32."""
    return float32_bytes if form.value_bits == 32 else form.encoded_bytes(-(-float32_bytes // FLOAT32_BYTES))
