"""What peers say to each other when work is done again to see whether it was done right (`audit`).

The word of a peer that others pass on is signed (`Signature`), over a text that names the run and everything else that it says
(`audit/texts`): so it counts wherever it goes, and for nothing else. Digests are SHA-256 of the bytes in which tensors travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, Len

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.wire import bounds as b

Signature = Annotated[str, Len(1, 1200)]
"""Key and signature of a peer, as the transport writes them."""

Difference = Annotated[float, Interval(ge=0.0, le=1e30)]
"""Norm of what differs, as a share of what the stage changes."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What `worker` has done of a microbatch, forward and backward: it got the input from `before`, who has its input gradient,
    and handed its output to `after`, who has sent the gradient of that."""

    microbatch: MicrobatchId
    stage: b.StageNumber
    worker: b.Peer
    before: b.Peer
    after: b.Peer
    epoch: b.Epoch = 0


@dataclass(frozen=True, slots=True)
class Digests:
    """Of the four tensors of a hop."""

    input: b.Digest
    output: b.Digest
    output_gradient: b.Digest
    input_gradient: b.Digest


@dataclass(frozen=True, slots=True)
class Testify:
    """From a data peer to the worker: your work on my microbatch is drawn; say what you had and made. `proof` is the data
    peer's signature that draws it."""

    hop: Hop
    proof: Signature

    @property
    def microbatch(self) -> MicrobatchId:
        return self.hop.microbatch


@dataclass(frozen=True, slots=True)
class Testimony:
    """From the worker: this is what I had and what I made of it."""

    hop: Hop
    digests: Digests
    signature: Signature


@dataclass(frozen=True, slots=True)
class AuditOrder:
    """From a data peer to another peer of the stage: do this again, with what the neighbours of the worker kept."""

    hop: Hop
    proof: Signature
    testimony: Testimony

    @property
    def microbatch(self) -> MicrobatchId:
        return self.hop.microbatch


@dataclass(frozen=True, slots=True)
class Finding:
    """An auditor's word: what it got from the worker's neighbours is what the `testimony` says, and its own result differs from
    the worker's by so much; `agrees`: by no more than the run allows."""

    testimony: Testimony
    auditor: b.Peer
    agrees: bool
    output: Difference
    gradient: Difference
    signature: Signature

    @property
    def hop(self) -> Hop:
        return self.testimony.hop


@dataclass(frozen=True, slots=True)
class AuditResult:
    """From the auditor to the data peer; without a finding, why there is none. `disputed`: this neighbour of the worker has
    something else than the worker says."""

    hop: Hop
    finding: Finding | None = None
    reason: b.Text = ""
    disputed: b.Peer | None = None


@dataclass(frozen=True, slots=True)
class Conviction:
    """To everybody: two peers of the stage have done the hop again. If both differ from the worker, it is the loser; if the
    second agrees with the worker, the first is. Nobody has to believe the sender: all of it is signed."""

    proof: Signature
    first: Finding
    second: Finding


AuditMessage = Testify | Testimony | AuditOrder | AuditResult | Conviction
