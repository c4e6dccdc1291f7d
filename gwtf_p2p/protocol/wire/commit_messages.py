"""What a coordinator and its participants say to each other to close an iteration (`protocol/commit`).

They are messages like the others, and are had from `messages`, where all kinds are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Len

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.limits import MOST_PEERS
from gwtf_p2p.protocol.wire import bounds as b
from gwtf_p2p.protocol.wire.certificates import Certificate, statement
from gwtf_p2p.protocol.wire.receipts import Receipts

NOT_FINITE = -1.0
"""Stands for the norm of a gradient that is not finite, which has no form on the wire: the step is skipped."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one participant of a stage group brings to an average: the microbatches credited to it."""

    participant: b.Peer
    microbatches: b.Microbatches


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Nobody has the weights of these stages any more. They are rebuilt from their neighbours': by who is told this with peers
    of the stage `below` its own and of the one `above`, which have theirs."""

    stages: b.Stages
    below: b.Peers = ()
    above: b.Peers = ()


Shares = Annotated[tuple[Share, ...], Len(1, MOST_PEERS)]


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """One attempt at closing an iteration: its number, then who leads it. Higher numbers replace lower ones."""

    attempt: b.AttemptNumber
    coordinator: b.Peer


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the weights of a version have lost, in the mean, on text that is not trained on; None where it is not finite."""

    version: b.Iteration
    loss: b.Number | None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """How the evaluations of a run have gone: the newest, the best one so far, whose `best_version` is -1 where none was
    finite, and how many have been `waited` since it for a lower loss."""

    newest: Evaluated
    best_version: b.WeightsVersion = -1
    best_loss: b.Number = 0.0
    waited: b.Count = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """From the coordinator to each participant of a stage group: average exactly these shares. A higher attempt replaces a
    lower.

    `base` is the ballot that the weights of this iteration were committed with, as far as the coordinator knows. `data_peers`
    take part in the next iteration; the first of them leads it. `mean_loss` is over all microbatches of this iteration.
    `receipts`, to data peers only, are those of the reports that the shares of all groups are made from; `receipts_digest`, to
    all participants, is what they say (`receipts.digest_of`): whoever signs the terms of an attempt signs for it.
    `skipped_for` have said that their own gradient is not finite: then nothing is averaged, and all stages skip the step.
    `evaluations` are those up to this iteration's weights, None while there are none.
    `left_out` are participants of any stage whose parts were refused (`averages/refused_parts`): they bring nothing to the
    average, and sum up nothing. More than `all_with_all` average in rows (`averages/rows`); 0: any number all with all.
    """

    iteration: b.Iteration
    attempt: b.AttemptNumber
    coordinator: b.Peer
    stage: b.StageNumber
    shares: Shares
    base: Ballot | None = None
    data_peers: b.Peers = ()
    mean_loss: b.Number = 0.0
    epoch: b.Epoch = 0
    receipts: Receipts = ()
    skipped_for: b.Peers = ()
    receipts_digest: b.Digest = ""
    evaluations: Evaluations | None = None
    left_out: b.Peers = ()
    all_with_all: b.Count = 0

    @property
    def ballot(self) -> Ballot:
        return Ballot(self.attempt, self.coordinator)

    @property
    def terms(self) -> str:
        """Digest of what is the same for all participants of an attempt, in whichever stage."""
        base = (self.base.attempt, self.base.coordinator) if self.base is not None else None
        said = (self.epoch, self.iteration, self.attempt, self.coordinator, base, self.data_peers, self.mean_loss)
        evaluated = (self.evaluations,) if self.evaluations is not None else ()  # a run without has the terms of older releases
        left_out = (self.left_out,) if self.left_out else ()  # and so has an attempt that leaves nobody out
        said = (*said, self.skipped_for, self.receipts_digest, *evaluated, *left_out)
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]

    @property
    def without_receipts(self) -> Prepare:
        """As others are told of it: with the receipts of many data peers it may be as large as a message can be."""
        return replace(self, receipts=())

    @property
    def key(self) -> str:
        """Names this average among all of a run: no two groups or attempts share it."""
        return f"{self.stage}.{self.iteration}.{self.attempt}.{self.coordinator}"

    @property
    def total(self) -> int:
        """Microbatches in the average, over all participants."""
        return sum(len(share.microbatches) for share in self.shares)

    @property
    def participants(self) -> tuple[PeerId, ...]:
        return tuple(share.participant for share in self.shares)

    @property
    def weights(self) -> tuple[int, ...]:
        """How many microbatches of each participant enter the average, in their order."""
        out = set(self.left_out)
        return tuple(0 if share.participant in out else len(share.microbatches) for share in self.shares)

    def share_of(self, participant: PeerId) -> frozenset[MicrobatchId]:
        """Empty for a peer that is no participant."""
        return frozenset(m for share in self.shares if share.participant == participant for m in share.microbatches)


@dataclass(frozen=True, slots=True)
class Prepared:
    """From a participant to the coordinator: my average of this attempt is ready, with this digest of its bytes and this
    squared norm. `state` is the digest of the weights that it is for, '' where they are not here. Signed as it is sent."""

    iteration: b.Iteration
    attempt: b.AttemptNumber
    stage: b.StageNumber
    digest: b.Digest
    squared_norm: b.GradientNorm = 0.0
    terms: b.Digest = ""
    state: b.Digest = ""
    signature: b.ShortSignature = ""

    @property
    def statement(self) -> str:
        """What is signed."""
        return statement(self.iteration, self.attempt, self.stage, self.terms, (self.digest, self.squared_norm, self.state))


@dataclass(frozen=True, slots=True)
class NotPrepared:
    """From a participant to the coordinator: this attempt failed here. `missing` are credited microbatches that I do not
    have. `finite`: False where my own gradient is not, or would make weights that are not. `refused`: the suspect is there,
    but its part, or what it says that the sum of its share is, is not taken (`trust/parts`)."""

    iteration: b.Iteration
    attempt: b.AttemptNumber
    stage: b.StageNumber
    reason: b.Text
    suspect: b.Peer | None = None
    missing: b.Microbatches = ()
    finite: bool = True
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Abort:
    """From the coordinator to every participant: this attempt will never be committed; the next one follows."""

    iteration: b.Iteration
    attempt: b.AttemptNumber


@dataclass(frozen=True, slots=True)
class Commit:
    """To every participant: apply the average of this attempt, which `coordinator` led. Weights version becomes iteration +
    1. `gradient_norm` is the whole model's. The `certificate` is the proof that all have prepared it."""

    iteration: b.Iteration
    attempt: b.AttemptNumber
    coordinator: b.Peer
    mean_loss: b.Number
    gradient_norm: b.GradientNorm = 0.0
    certificate: Certificate | None = None

    @property
    def ballot(self) -> Ballot:
        return Ballot(self.attempt, self.coordinator)


def commit_of(prepare: Prepare, gradient_norm: float, certificate: Certificate | None = None) -> Commit:
    """The commit of an attempt; one that skips the step says so as every participant that has prepared it knows."""
    norm = NOT_FINITE if prepare.skipped_for else gradient_norm
    return Commit(prepare.iteration, prepare.attempt, prepare.coordinator, prepare.mean_loss, norm, certificate)
