"""What peers say to each other about microbatches and iterations.

`Forward` and `Backward` travel with a tensor and are answered at once with a `Verdict`, before the tensor has arrived.
All others are small and are acknowledged by the transport. Nothing here is trusted further than its sender: the sender's
id comes from the transport, never from the message.

A microbatch of iteration i is computed with weights version i, so the iteration in its id says which weights it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.plain import from_plain, to_plain


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
    """An activation for `stage` (S + 1 means: back at the data peer, for the loss). `ahead` lists planned later hops."""

    microbatch: MicrobatchId
    attempt: int
    stage: Stage
    ahead: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Backward:
    """The gradient of the receiver's output. `done_by` lists who did the backward of the stages after the receiver's."""

    microbatch: MicrobatchId
    attempt: int
    stage: Stage
    done_by: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """To the predecessor: my forward is computed (`held_s` after delivery) and `successor` has accepted it."""

    microbatch: MicrobatchId
    successor: PeerId
    held_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """To the data peer: I did the backward of `stage`, and the usual way back could not tell you (a repair)."""

    microbatch: MicrobatchId
    stage: Stage


@dataclass(frozen=True, slots=True)
class Superseded:
    """To a former neighbour: another peer took your place for this microbatch; drop what you hold of it."""

    microbatch: MicrobatchId


@dataclass(frozen=True, slots=True)
class Check:
    """Are you alive, and do you still hold these? The answer lists the ones that the receiver does not know."""

    microbatches: tuple[MicrobatchId, ...] = ()


@dataclass(frozen=True, slots=True)
class Credit:
    """Ledger line: `peers[k - 1]` did stage k of the data peer's microbatch `index`."""

    index: int
    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """From a data peer to the leader: all my microbatches of this iteration are back; who did what; their mean loss."""

    iteration: int
    ledger: tuple[Credit, ...]
    mean_loss: float


@dataclass(frozen=True, slots=True)
class Share:
    """What one member of a stage group brings to an average: the microbatches credited to it."""

    member: PeerId
    microbatches: tuple[MicrobatchId, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """From the leader to each member of a stage group: average exactly these shares. A higher attempt replaces a lower."""

    iteration: int
    attempt: int
    stage: Stage
    shares: tuple[Share, ...]

    @property
    def total(self) -> int:
        """Microbatches in the average, over all members."""
        return sum(len(share.microbatches) for share in self.shares)

    @property
    def members(self) -> tuple[PeerId, ...]:
        return tuple(share.member for share in self.shares)


@dataclass(frozen=True, slots=True)
class Averaged:
    """From a member to the leader: my average of this attempt is ready, with this digest of its bytes."""

    iteration: int
    attempt: int
    stage: Stage
    digest: str


@dataclass(frozen=True, slots=True)
class NotAveraged:
    """From a member to the leader: this attempt failed here. `missing` are credited microbatches that I do not have."""

    iteration: int
    attempt: int
    stage: Stage
    reason: str
    suspect: PeerId | None = None
    missing: tuple[MicrobatchId, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """From the leader to every member: apply the average of this attempt. Weights version becomes iteration + 1."""

    iteration: int
    attempt: int
    mean_loss: float


@dataclass(frozen=True, slots=True)
class Lost:
    """From the leader: this peer is confirmed lost; whoever handed microbatches to it repairs them."""

    peer: PeerId
    reason: str


TensorMessage = Forward | Backward
ControlMessage = Complete | Done | Superseded | Check | Finished | Close | Averaged | NotAveraged | Commit | Lost
Message = TensorMessage | ControlMessage

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Forward, Backward, Complete, Done, Superseded, Check, Finished, Close, Averaged, NotAveraged, Commit, Lost)
}


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
