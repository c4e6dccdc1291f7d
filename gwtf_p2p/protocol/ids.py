"""Names of things. One word per thing: peer, stage, microbatch, hop, route, iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NewType

from annotated_types import Interval, Len

from gwtf_p2p.protocol.limits import MOST_ITERATIONS, MOST_MICROBATCHES

PeerId = NewType("PeerId", str)
"""libp2p identity in base58 in the live swarm. In the simulator a short name such as `data_0`, or `relay_1_0` for a stage peer:
names decide ties and draws, so they stay as they were when the first figures were made."""

PEER_ID = "12D3Koo[1-9A-HJ-NP-Za-km-z]{45}|Qm[1-9A-HJ-NP-Za-km-z]{44}"
"""A pattern of libp2p's ids: base58 of the hash of an RSA key, or of an Ed25519 key itself."""

NOBODY = PeerId("")

RunId = NewType("RunId", str)

Stage = NewType("Stage", int)
"""0 is held by the data peers (embedding, norm, head, loss), 1..S by the stage peers."""

DATA_STAGE = Stage(0)

Place = tuple[Stage, PeerId]
"""A peer in a stage that it has had; over a run it may have had several."""


@dataclass(frozen=True, order=True, slots=True)
class MicrobatchId:
    """The unit that travels. Its gradient is accumulated under this id, once per stage, however often it is sent."""

    data_peer: Annotated[PeerId, Len(1, 128)]
    iteration: Annotated[int, Interval(ge=0, le=MOST_ITERATIONS)]
    index: Annotated[int, Interval(ge=0, le=MOST_MICROBATCHES)]

    def __str__(self) -> str:
        return f"{self.data_peer[-6:]}/{self.iteration}/{self.index}"


ROLES = ("data", "stage")
OLDER_ROLES = {"relay": "stage"}
"""How scenario files, problem files and churn scripts name a peer's role, and the spelling of older files for a stage peer."""
