"""How many bytes what peers send each other takes on the wire."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.wire.messages import Forward, TensorMessage
from gwtf_p2p.protocol.wire.run_parts import WireSpec
from gwtf_p2p.protocol.wire.tensor_formats import AVERAGE_FORMATS, FORMATS, TensorFormat
from gwtf_p2p.simulation.scenario.scenario import ModelSpec

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one boundary activation, of its gradient, of one stage's gradient in an average, and of a stage's weights with
    their optimizer."""

    activation_bytes: int
    gradient_bytes: int
    average_bytes: int
    state_bytes: int

    @staticmethod
    def of(model: ModelSpec, wire: WireSpec) -> Sizes:
        """Where tensors travel in these formats; a scenario states the bytes of float32. Weights stay float32."""
        return Sizes(
            encoded_bytes(model.microbatch_bytes, FORMATS[wire.activations]),
            encoded_bytes(model.microbatch_bytes, FORMATS[wire.gradients]),
            encoded_bytes(model.stage_gradient_bytes, AVERAGE_FORMATS[wire.averages]),
            model.stage_state_bytes,
        )

    @property
    def both_bytes(self) -> int:
        """What a microbatch takes on a link, there and back."""
        return self.activation_bytes + self.gradient_bytes

    def of_push(self, message: TensorMessage) -> int:
        """Of the tensor that goes with a push."""
        return self.activation_bytes if isinstance(message, Forward) else self.gradient_bytes


def encoded_bytes(float32_bytes: int, form: TensorFormat) -> int:
    """Of a tensor that takes so many bytes in float32."""
    return float32_bytes if form.value_bits == 32 else form.encoded_bytes(-(-float32_bytes // FLOAT32_BYTES))
