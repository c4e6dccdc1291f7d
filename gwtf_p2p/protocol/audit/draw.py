"""Which hops are done again, and by whom: drawn from the data peer's signature over the microbatch's name.

The signature is made once the microbatch is back, so no worker can know beforehand whether its work is drawn; with a scheme
that has one signature for each text (RSA, PKCS 1 v1.5) the data peer cannot choose either. Everybody can check the signature,
and so the draw and the order in which peers of the stage are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gwtf_p2p.protocol.ids import PeerId, Stage


def is_drawn(proof: str, stage: Stage, share: float) -> bool:
    """Is this stage's work on the microbatch, whose data peer has signed so, done again?"""
    return _number(proof, "hop", str(stage)) < share


def in_order(proof: str, stage: Stage, peers: Iterable[PeerId]) -> list[PeerId]:
    """The peers of a stage in the order in which they are asked to do it again."""
    return sorted(peers, key=lambda peer: (_number(proof, "auditor", f"{stage} {peer}"), peer))


def _number(proof: str, what: str, of: str) -> float:
    """From 0 to 1, evenly."""
    digest = hashlib.sha256(f"{what}\0{of}\0{proof}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
