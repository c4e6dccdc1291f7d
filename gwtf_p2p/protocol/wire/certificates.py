"""The proof that an attempt was committed: what its participants have signed.

Each participant signs what it has `Prepared`, with the key that its signed record names. Put together by whoever leads, these
are a *certificate*: it goes with the commit, and from then on with what its holders say of where they stand. Whoever is told of
a later position, or of a commit that it has no part in, believes the certificate and not the sender (`commit/certifying`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from gwtf_p2p.protocol.limits import MOST_PEERS
from gwtf_p2p.protocol.wire import bounds as b

ATTEMPTS_PER_EPOCH = 1 << 20
"""So that no two committed attempts of an iteration have equal numbers, whatever happened between."""


def statement(iteration: int, attempt: int, stage: int, terms: str, said: tuple[str, float, str]) -> str:
    """What a participant signs; `said` are the digest and the squared norm of its average, and the digest of its weights."""
    digest, squared_norm, state = said
    return f"prepared {iteration} {attempt} {stage} {terms} {digest} {squared_norm!r} {state}"


@dataclass(frozen=True, slots=True)
class Alike:
    """Participants of one stage that have prepared the same, and their signatures, in the order of `peers`."""

    stage: b.StageNumber
    digest: b.Digest
    squared_norm: b.GradientNorm
    state: b.Digest
    peers: b.Peers
    signatures: b.Signatures


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of one attempt. `terms`: see `Prepare.terms`."""

    iteration: b.Iteration
    attempt: b.AttemptNumber
    terms: b.Digest
    groups: Annotated[tuple[Alike, ...], Len(1, MOST_PEERS)]

    @property
    def position(self) -> tuple[int, int]:
        """Where its commit leads to: (epoch, iteration)."""
        return self.attempt // ATTEMPTS_PER_EPOCH, self.iteration + 1

    def statement_of(self, group: Alike) -> str:
        """What the peers of this group have signed."""
        said = (group.digest, group.squared_norm, group.state)
        return statement(self.iteration, self.attempt, group.stage, self.terms, said)
