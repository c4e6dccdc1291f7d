"""What state machines ask their interpreters to do, in order (see `events` for the other half)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol.events import Slot, TimerName, Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.plans import PlanRequest
from gwtf_p2p.protocol.wire.audit_messages import Hop
from gwtf_p2p.protocol.wire.messages import ControlMessage, Evaluations, Prepare, Rebuild, TensorMessage, Verdict
from gwtf_p2p.protocol.wire.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on the offer being handled."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """The answer to the `Check` being handled."""

    unknown: tuple[MicrobatchId, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """Transfer a tensor. Followed by PushAnswered, then PushDelivered if it was accepted; or PushFailed."""

    token: int
    to: PeerId
    message: TensorMessage
    slot: Slot


@dataclass(frozen=True, slots=True)
class CancelPush:
    """Nobody waits for this push any more; the interpreter may stop it. No event follows."""

    token: int


@dataclass(frozen=True, slots=True)
class Send:
    """A small acknowledged message. Followed by SendFailed if it could not be delivered; a peer may send to itself."""

    to: PeerId
    message: ControlMessage


@dataclass(frozen=True, slots=True)
class Ask:
    """Is this peer alive, and does it hold these? Followed by CheckAnswered or CheckFailed."""

    peer: PeerId
    microbatches: tuple[MicrobatchId, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Compute:
    """`keeps`: of a forward, whether its activations are kept for the backward; of a backward, whether they are there. If not,
    the forward is computed again first, from the input, which is kept in any case.
    """

    work: Work
    microbatch: MicrobatchId
    keeps: bool = True


@dataclass(frozen=True, slots=True)
class DropActivations:
    """Free what the forward of this microbatch has kept for its backward, its input and output excepted."""

    microbatch: MicrobatchId


@dataclass(frozen=True, slots=True)
class StartTimer:
    """(Re)start: a timer of the same name is replaced."""

    name: TimerName
    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: TimerName


@dataclass(frozen=True, slots=True)
class Watch:
    """Keep a connection to this peer and say when it breaks."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Unwatch:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Average:
    """Average the gradients of a stage group. Followed by AverageDone or AverageFailed; the inputs stay untouched.

    `prepare.key` names the average. A result is kept until its Step or CancelAverage: a peer that is downloading its
    weights steps later, and several iterations in turn.
    """

    prepare: Prepare


@dataclass(frozen=True, slots=True)
class CancelAverage:
    """Nobody waits for this average any more, running or done. No event follows."""

    iteration: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Step:
    """Apply the average of this attempt with the optimizer, clipped by the whole model's `gradient_norm`; nothing is applied
    where that is -1, for not finite. `receipts`, at a data peer, enter the state with it. Followed by Stepped."""

    iteration: int
    attempt: int
    gradient_norm: float = 0.0
    receipts: tuple[Receipt, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """Put weights and optimizer state of this version in place; it replaces an earlier download.

    With `own`, from what is there if it can be: the weights themselves, a checkpoint, a replica. Otherwise from the donors,
    several at once. The gradient is emptied, kept averages are dropped; checkpoints of later versions are of no use any more
    and must be removed. From now on checkpoints are of this `epoch`. Followed by Downloaded or DownloadFailed.

    `rebuild`: stages begin anew with this epoch; a data peer's state says so from then on. A peer that is named others in it
    fetches their weights instead, and rebuilds those of its own stage from them.

    `weights_first`: the weights are put in place as soon as they have come (WeightsDownloaded), and what the optimizer keeps
    with them after that, of the same donors and the same version, beside what is computed meanwhile: the gradient stays.
    """

    version: int
    donors: tuple[PeerId, ...]
    own: bool = False
    epoch: int = 0
    rebuild: Rebuild | None = None
    weights_first: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Write the weights and their optimizer, which are of this version now, and what evaluations have come to so far, to this
    peer's disk, if it has a place for them; of the last version, do whatever else is to be done with them before the end.
    Followed by Checkpointed."""

    version: int
    evaluations: Evaluations | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Free every tensor of this microbatch."""

    microbatch: MicrobatchId


@dataclass(frozen=True, slots=True)
class Plan:
    """Make this plan (`iteration_plan.make_plan`), which takes long, where it disturbs nobody. Followed by Planned."""

    request: PlanRequest


@dataclass(frozen=True, slots=True)
class MoveTo:
    """This peer changes its stage: end this state machine, which holds nothing any more, and start one of that stage, under the
    same identity, with nothing but what checkpoints or copies of that stage are here (`Started`). No event follows.
    """

    stage: Stage
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """This peer's part in the run is over: its program ends, without an error. No event follows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Publish:
    """This peer's record changed in a way that others should see soon."""


@dataclass(frozen=True, slots=True)
class Bar:
    """End what connects this peer, and take nothing from it for so many seconds; 0 ends an earlier bar. No event follows."""

    peer: PeerId
    seconds: float


@dataclass(frozen=True, slots=True)
class Sign:
    """Sign this text, and the run's name before it, with this peer's key; a text has one signature. Followed by Signed."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Digest:
    """Of the four tensors that this peer has of a microbatch, as they travel. Followed by Digested."""

    microbatch: MicrobatchId


@dataclass(frozen=True, slots=True)
class Gather:
    """Have the neighbours of a hop's worker send what they kept of it, to be computed again (`Work.AUDIT`). Followed by
    Gathered; what has come is kept until DropGathered."""

    hop: Hop
    proof: str


@dataclass(frozen=True, slots=True)
class DropGathered:
    """Free what was gathered of this microbatch, and gather no more. No event follows."""

    microbatch: MicrobatchId


@dataclass(frozen=True, slots=True)
class Report:
    """Something that people and metrics want to know: a stable name and its fields."""

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)


Effect = (
    Answer
    | AnswerCheck
    | Push
    | CancelPush
    | Send
    | Ask
    | Compute
    | DropActivations
    | StartTimer
    | CancelTimer
    | Watch
    | Unwatch
    | Average
    | CancelAverage
    | Step
    | Download
    | Checkpoint
    | Discard
    | Plan
    | MoveTo
    | End
    | Publish
    | Bar
    | Sign
    | Digest
    | Gather
    | DropGathered
    | Report
)
