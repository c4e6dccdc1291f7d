"""What peers say to each other about microbatches and iterations.

`Forward` and `Backward` travel with a tensor and are answered at once with a `Verdict`, before the tensor has arrived.
All others are small and are acknowledged by the transport. Nothing here is trusted further than its sender: the sender's
id comes from the transport, never from the message.

A microbatch of iteration i is computed with weights version i, so the iteration in its id says which weights it needs.

**Attempts of a microbatch** are ordered so that a repair further up outranks every repair further down. An attempt is a
tuple: the data peer's incarnation (it grows with each restart), then one number per stage passed, how often that stage's
peer has handed the microbatch on. Tuples of one stage have equal lengths and compare from left to right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, get_args

from annotated_types import Len

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.limits import MOST_MICROBATCHES
from gwtf_p2p.protocol.wire import bounds as b
from gwtf_p2p.protocol.wire.audit_messages import AuditMessage
from gwtf_p2p.protocol.wire.certificates import Certificate
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.commit_messages import Abort as Abort
from gwtf_p2p.protocol.wire.commit_messages import Ballot as Ballot
from gwtf_p2p.protocol.wire.commit_messages import Commit as Commit
from gwtf_p2p.protocol.wire.commit_messages import Evaluated as Evaluated
from gwtf_p2p.protocol.wire.commit_messages import Evaluations as Evaluations
from gwtf_p2p.protocol.wire.commit_messages import NotPrepared as NotPrepared
from gwtf_p2p.protocol.wire.commit_messages import Prepare as Prepare
from gwtf_p2p.protocol.wire.commit_messages import Prepared as Prepared
from gwtf_p2p.protocol.wire.commit_messages import Rebuild as Rebuild
from gwtf_p2p.protocol.wire.commit_messages import Share as Share
from gwtf_p2p.protocol.wire.commit_messages import commit_of as commit_of
from gwtf_p2p.protocol.wire.negotiation_messages import NegotiationMessage
from gwtf_p2p.protocol.wire.receipts import Receipt

Attempt = tuple[int, ...]
"""See the module docstring."""

SUPERSEDED = "superseded"
"""Detail of a REFUSED: the receiver holds this microbatch in a higher attempt."""


class Verdict(Enum):
    """The receiver's answer to an offered transfer, given at once.

    DUPLICATE: it already holds (or has done) this microbatch, keep the tensor; the sender is its neighbour from now on.
    BUSY: no capacity now. STALE: weights versions differ. REFUSED: bad input or withdrawn, with the reason.
    """

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    BUSY = "BUSY"
    STALE = "STALE"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Forward:
    """An activation for `stage` (S + 1 means: back at the data peer, for the loss). `ahead` lists planned later hops.

    `epoch` counts how often the swarm has gone back to an earlier iteration: weights of another epoch differ.
    """

    microbatch: MicrobatchId
    attempt: b.AttemptOf
    stage: b.StageNumber
    ahead: b.Route = ()
    epoch: b.Epoch = 0


@dataclass(frozen=True, slots=True)
class Backward:
    """The gradient of the receiver's output. `done_by` lists who did the backward of the stages after the receiver's."""

    microbatch: MicrobatchId
    attempt: b.AttemptOf
    stage: b.StageNumber
    done_by: b.Route = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """To the predecessor: my forward is computed (`held_s` after delivery) and `successor` has accepted it."""

    microbatch: MicrobatchId
    successor: b.Peer
    held_s: b.Seconds


@dataclass(frozen=True, slots=True)
class CapacityAvailable:
    """To a peer whose offers were BUSY: I can take so many `microbatches` now. Who comes first gets it; it may be lost."""

    microbatches: b.Index


@dataclass(frozen=True, slots=True)
class Done:
    """To the data peer: I did the backward of `stage`, and the usual way back could not tell you (a repair).

    `done_by` did those of the stages after it: if these were redone as well, their way back has ended here."""

    microbatch: MicrobatchId
    stage: b.StageNumber
    done_by: b.Route = ()


@dataclass(frozen=True, slots=True)
class Superseded:
    """To a former neighbour: another peer took your place for this microbatch; drop it unless your attempt is higher."""

    microbatch: MicrobatchId
    attempt: b.AttemptOf


@dataclass(frozen=True, slots=True)
class Check:
    """Are you alive, and do you still hold these? The answer lists the ones that the receiver does not know."""

    microbatches: b.Microbatches = ()


@dataclass(frozen=True, slots=True)
class Redo:
    """From a data peer to the peer before `stage`: `lost` did this stage of my microbatch; hand it to another peer.

    `ahead` are the peers that did the stages after it. To a peer of `stage` itself it asks: have you done it?
    `generation` above the first number of the receiver's attempt replaces it: an earlier request has met a higher attempt.
    `refused`: `lost` is there, but the next peer does not take what it hands on.
    """

    microbatch: MicrobatchId
    stage: b.StageNumber
    lost: b.NoPeer
    ahead: b.Route = ()
    generation: b.Count = 0
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """To a data peer: `peer` does not have these microbatches of `stage`, whatever the ledger says.

    A stage peer's word about another one is a reason to ask that one; it may have got them from somebody else since.
    """

    peer: b.Peer
    stage: b.StageNumber
    microbatches: b.Microbatches


@dataclass(frozen=True, slots=True)
class Credit:
    """Ledger line: `peers[k - 1]` did stage k of the data peer's microbatch `index`; empty: dropped (fast recovery)."""

    index: b.Index
    peers: b.Credited


Ledger = Annotated[tuple[Credit, ...], Len(0, MOST_MICROBATCHES)]


@dataclass(frozen=True, slots=True)
class Finished:
    """From a data peer to the coordinator: all my microbatches of this iteration are back; who did what; their mean loss.

    `leaving`: do not wait for me in the next iteration. `receipt` signs for what the ledger says. `evaluated`: what the weights
    of this iteration have lost on other text, from the data peer that has looked.
    """

    iteration: b.Iteration
    ledger: Ledger
    mean_loss: b.Number
    leaving: bool = False
    epoch: b.Epoch = 0
    receipt: Receipt | None = None
    evaluated: Evaluated | None = None


@dataclass(frozen=True, slots=True)
class Inquire:
    """From a would-be coordinator: where do you stand? With a number above 0: and take no part in lower attempts any more."""

    iteration: b.Iteration
    attempt: b.AttemptNumber = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a peer stands. `version`: the iteration that it works on, in this `epoch` (how often the swarm has gone back);
    `committed`: the ballot that brought it there; `kept`: the versions that it has checkpoints of.

    `promised`: attempts below this one have no future here. `prepare`: the attempt it takes part in, `prepared` when its
    average is ready, of which `digest` is the digest and `squared_norm` the squared norm; `gradient_norm` is that of the commit
    which brought it there, and `certificate` the proof of it; `state` and `signature` are as in its `Prepared`. `joining`: it
    has just come, or come back with nothing held: what it had before is gone. `syncing`: it follows the averages but does not
    hold the weights yet. `active`: a data peer that others may ask to take them in. `taking_part`: it has microbatches in this
    iteration, which `coordinator` leads as far as it knows. `leaving`: do not count on it any more.
    """

    stage: b.StageNumber
    version: b.WeightsVersion
    committed: Ballot | None = None
    promised: Ballot | None = None
    prepare: Prepare | None = None
    prepared: bool = False
    digest: b.Digest = ""
    joining: bool = False
    syncing: bool = False
    active: bool = False
    taking_part: bool = False
    coordinator: b.Peer | None = None
    leaving: bool = False
    epoch: b.Epoch = 0
    kept: b.Versions = ()
    squared_norm: b.GradientNorm = 0.0
    gradient_norm: b.GradientNorm = 0.0
    state: b.Digest = ""
    signature: b.ShortSignature = ""
    certificate: Certificate | None = None

    @property
    def as_prepared(self) -> Prepared | None:
        """What it has told the coordinator of the attempt at hand; None before its average is ready."""
        if not self.prepared or self.prepare is None:
            return None
        prepare, said = self.prepare, (self.digest, self.squared_norm)
        return Prepared(prepare.iteration, prepare.attempt, self.stage, *said, prepare.terms, self.state, self.signature)

    @property
    def position(self) -> tuple[int, int]:
        """Orders what has happened: a later epoch outranks a later iteration."""
        return self.epoch, self.version

    def is_about_to_begin(self, position: tuple[int, int], committed: Ballot | None) -> bool:
        """It has prepared the attempt that this position was got to by, and steps as soon as it has the proof of the commit."""
        epoch, iteration = position
        before = self.position == (epoch, iteration - 1) and not self.joining and self.prepared
        return before and self.prepare is not None and self.prepare.ballot == committed


@dataclass(frozen=True, slots=True)
class Admit:
    """From the coordinator: take part from this iteration on. Whoever lacks its weights downloads them from `donors`, or takes
    its `own` checkpoint, which is the right one.

    `data_peers`: those whose first leads this iteration; a data peer that is admitted joins them in the next one.
    A `epoch` above the receiver's means: the swarm goes back to this iteration, because a later one has been lost in some
    stage; whoever is further comes back, from its own checkpoint or from `donors`. `epoch_starts`: where each epoch began. The
    `certificate` proves that the iteration has been got to by a commit, if it was since the coordinator has started. `rebuild`:
    with this epoch stages begin anew whose weights are lost. `evaluations`: those up to this iteration.
    """

    iteration: b.Iteration
    donors: b.Peers = ()
    data_peers: b.Peers = ()
    epoch: b.Epoch = 0
    own: bool = False
    epoch_starts: b.EpochStarts = ()
    certificate: Certificate | None = None
    rebuild: Rebuild | None = None
    evaluations: Evaluations | None = None
    committed: Ballot | None = None

    @property
    def position(self) -> tuple[int, int]:
        return self.epoch, self.iteration


@dataclass(frozen=True, slots=True)
class Lost:
    """From the coordinator: this peer is confirmed lost; whoever handed microbatches to it repairs them."""

    peer: b.Peer
    reason: b.Text


TensorMessage = Forward | Backward
ControlMessage = (
    Complete
    | CapacityAvailable
    | Done
    | Superseded
    | Check
    | Redo
    | Missing
    | Finished
    | Prepare
    | Prepared
    | NotPrepared
    | Abort
    | Commit
    | Inquire
    | Standing
    | Admit
    | Lost
    | NegotiationMessage
    | AuditMessage
)
Message = TensorMessage | ControlMessage

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*get_args(TensorMessage), *get_args(ControlMessage))}


def to_header(message: Message) -> dict[str, Any]:
    """The message as a plain map with its kind, for the transport."""
    plain: dict[str, Any] = to_plain(message)
    return {"kind": type(message).__name__, **plain}


def from_header(header: Mapping[str, Any]) -> Message:
    """Raises RemoteProtocolError when the header is no message of this protocol."""
    kind = _KINDS.get(str(header.get("kind")))
    if kind is None:
        raise RemoteProtocolError(f"unknown message kind {header.get('kind')!r:.40}")
    message: Message = from_plain(kind, dict(header), kind.__name__)
    return message
