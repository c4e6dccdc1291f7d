"""The tensors that cross a stage's boundaries: as wire bytes in the store, as tensors of the device for a computation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gwtf_p2p.live.compute.tensor_store import TensorStore
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.trust.magnitudes import Magnitudes
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.run_parts import BoundaryTensor, floats_of
from gwtf_p2p.training.codecs.codec import Codec, NotFiniteError
from gwtf_p2p.training.codecs.payload import (
    check_gradient,
    check_payload,
    decode_gradient,
    decode_payload,
    encode_gradient,
    encode_payload,
)
from gwtf_p2p.training.codecs.table import codec_of
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.parts.spec import Boundaries

GRADIENTS = (Slot.INPUT_GRADIENT, Slot.OUTPUT_GRADIENT)


@dataclass(frozen=True, slots=True)
class BoundaryCodecs:
    """How tensors travel over the boundaries of a run, in each direction."""

    activations: Codec
    gradients: Codec

    @staticmethod
    def of(run: RunRecord) -> BoundaryCodecs:
        """Raises InputError for a codec that this peer does not know."""
        activations = codec_of(run.wire.activations, field="wire.activations")
        return BoundaryCodecs(activations, codec_of(run.wire.gradients, field="wire.gradients"))

    def of_slot(self, slot: Slot) -> Codec:
        """The codec of what is in this slot."""
        return self.activations if slot in (Slot.INPUT, Slot.OUTPUT) else self.gradients


@dataclass(frozen=True, slots=True)
class BoundaryTensors:
    """Reads and writes the store of one peer. `device` is where its computations want their tensors."""

    boundaries: Boundaries
    codecs: BoundaryCodecs
    store: TensorStore
    device: torch.device
    magnitudes: Magnitudes = field(default_factory=Magnitudes)

    def slot_bytes(self, slot: Slot) -> int:
        """What a transfer into this slot carries."""
        form, boundary = self.codecs.of_slot(slot).form, self.of_slot(slot)
        return sum(tensor.encoded_bytes(form) for tensor in (floats_of(boundary) if slot in GRADIENTS else boundary))

    def of_slot(self, slot: Slot) -> tuple[BoundaryTensor, ...]:
        """What the tensors in this slot are, or are the gradient of."""
        return self.boundaries.input if slot in (Slot.INPUT, Slot.INPUT_GRADIENT) else self.boundaries.output

    def take_in(self, microbatch: MicrobatchId, slot: Slot, payload: memoryview, sender: PeerId | None = None) -> None:
        """Bytes of another peer. Raises RemoteProtocolError, and keeps nothing, when they are no tensor, or one that is far
        larger than what others send (`Magnitudes`)."""
        boundary, codec = self.of_slot(slot), self.codecs.of_slot(slot)
        if slot in GRADIENTS:
            size = check_gradient(payload, boundary, codec)
        else:
            size = check_payload(payload, boundary, codec, self.boundaries.below)
        refusal = self.magnitudes.refusal(slot, sender, size) if sender is not None else ""
        if refusal:
            raise RemoteProtocolError(refusal)
        self.store.put(microbatch, slot, payload)

    def read(self, microbatch: MicrobatchId, slot: Slot) -> Payload:
        """Raises KeyError when the slot is empty: our bug."""
        decode = decode_gradient if slot in GRADIENTS else decode_payload
        return decode(self.store.get(microbatch, slot), self.of_slot(slot), self.codecs.of_slot(slot), self.device)

    def keep(self, microbatch: MicrobatchId, slot: Slot, payload: Payload) -> bool:
        """An own result; False when it is not finite. Then zeros stand for it, and the step that it is for will be skipped."""
        codec, boundary = self.codecs.of_slot(slot), self.of_slot(slot)
        encode = encode_gradient if slot in GRADIENTS else encode_payload
        try:
            encoded, finite = encode(payload, boundary, codec), True
        except NotFiniteError:
            zeros = tuple(t if each.is_integer else torch.zeros_like(t) for t, each in zip(payload, boundary, strict=True))
            encoded, finite = encode(zeros, boundary, codec), False
        self.store.put(microbatch, slot, encoded)
        return finite
