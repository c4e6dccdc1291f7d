"""Events in, effects (`effects`) out: the whole interface between the protocol and its two interpreters.

An interpreter (simulation/world/world, live/peer/driver) feeds events to a state machine and carries out the effects that it
returns, in order. It contains no policy. Failures are events like any other. Every event that follows from an effect carries
what is needed to recognise it (a token, a name, an id), so that an answer to a question no longer asked is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan
from gwtf_p2p.protocol.wire.audit_messages import Digests, Hop
from gwtf_p2p.protocol.wire.messages import ControlMessage, Evaluations, TensorMessage, Verdict
from gwtf_p2p.protocol.wire.signed import Order


class Slot(Enum):
    """The four tensors that a peer may hold of one microbatch. Delivered tensors go to INPUT or OUTPUT_GRADIENT."""

    INPUT = "input"
    OUTPUT = "output"
    OUTPUT_GRADIENT = "output_gradient"
    INPUT_GRADIENT = "input_gradient"


class Work(Enum):
    """What the compute thread can be asked to do; one at a time.

    FORWARD: INPUT to OUTPUT. BACKWARD: OUTPUT_GRADIENT to INPUT_GRADIENT, counted. On data peers EMBED makes OUTPUT from
    tokens, LOSS makes INPUT_GRADIENT from INPUT (head, counted), FINISH takes OUTPUT_GRADIENT (embedding, counted).
    UNCOUNT recomputes the gradient of a counted microbatch and subtracts it, RECOUNT adds it again. AUDIT does another peer's
    work again, from what its neighbours have sent here (`effects.Gather`), and counts nothing.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    EMBED = "embed"
    LOSS = "loss"
    FINISH = "finish"
    UNCOUNT = "uncount"
    RECOUNT = "recount"
    AUDIT = "audit"


class Timer(Enum):
    """What is waited for. Which part of a machine hears of it is said once, where timers fire (`peer/base`)."""

    # of a whole peer
    HEARTBEAT = "heartbeat"
    SEEK = "seek"
    DOUBT = "doubt"
    NEGOTIATE = "negotiate"
    AVERAGING = "averaging"
    PLACEMENT = "placement"
    END = "end"
    # of a hop that is done again
    AUDIT = "audit"
    # of a data peer
    INJECT = "inject"
    REDO = "redo"
    FINISH = "finish"
    # of a coordinator
    AVERAGE = "average"
    INQUIRE = "inquire"
    WAIT = "wait"
    PREPARE = "prepare"
    BACK = "back"
    # of one microbatch
    PUSH = "push"
    ROUTE = "route"
    COMPLETE = "complete"
    BACKWARD = "backward"
    RETURN = "return"
    ORPHAN = "orphan"


CoordinatorTimer = Literal[Timer.AVERAGE, Timer.INQUIRE, Timer.WAIT, Timer.PREPARE, Timer.BACK]
OwnTimer = Literal[Timer.PLACEMENT, Timer.INJECT, Timer.REDO, Timer.FINISH] | CoordinatorTimer
"""Of these, each kind of peer knows its own."""

MicrobatchTimer = Literal[Timer.PUSH, Timer.ROUTE, Timer.COMPLETE, Timer.BACKWARD, Timer.RETURN, Timer.ORPHAN]
WaitTimer = Literal[Timer.PUSH, Timer.COMPLETE, Timer.BACKWARD]
"""For the next peer."""

TimerName = tuple[Timer, str]
"""What is waited for, and for which entity: (Timer.BACKWARD, str(microbatch)); '' for the peer itself."""


@dataclass(frozen=True, slots=True)
class Started:
    """The peer is up: identity, DHT and transport work. `weights_version` is what its weights are at (a checkpoint's).

    `incarnation` must grow with every start of this identity, as the wall clock in seconds does; 0 takes `now` instead.
    `epoch` and `evaluations` are the checkpoint's, `kept` are the versions of all checkpoints that it could be restored from.
    """

    weights_version: int = 0
    incarnation: int = 0
    epoch: int = 0
    kept: tuple[int, ...] = ()
    evaluations: Evaluations | None = None


@dataclass(frozen=True, slots=True)
class ViewChanged:
    view: NetworkView


@dataclass(frozen=True, slots=True)
class Ordered:
    """Orders of the run's owner and admins have been read, whose signatures are right; old ones may be among them."""

    orders: tuple[Order, ...]


@dataclass(frozen=True, slots=True)
class Offered:
    """A transfer begins. The returned effects contain exactly one `Answer`."""

    sender: PeerId
    message: TensorMessage


@dataclass(frozen=True, slots=True)
class Delivered:
    """The tensor of an accepted offer has arrived whole and lies in its slot."""

    sender: PeerId
    message: TensorMessage


@dataclass(frozen=True, slots=True)
class DeliveryBroken:
    """The tensor of an accepted offer will never arrive. `refused`: it has, and is none, or none that is taken."""

    sender: PeerId
    message: TensorMessage
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class PushAnswered:
    token: int
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PushDelivered:
    """The receiver has acknowledged the whole tensor, `seconds` after the push began."""

    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PushFailed:
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A small message. For a `Check` the returned effects contain one `AnswerCheck`."""

    sender: PeerId
    message: ControlMessage


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer has sent what is no message, or one that could not be handled: it is dropped, and counts against its sender."""

    sender: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class SendFailed:
    to: PeerId
    message: ControlMessage
    reason: str


@dataclass(frozen=True, slots=True)
class Computed:
    """`again_s` of the `seconds` went into a forward that was computed a second time, because its activations were not kept.
    `finite`: False where a result is not; zeros stand for it, and no gradient was counted. `loss`: None where it is not.
    `differs`, of an audit: by how much the worker's output and gradient differ from this peer's, as shares of the change; None
    where nothing was compared.
    """

    work: Work
    microbatch: MicrobatchId
    seconds: float
    loss: float | None = None
    again_s: float = 0.0
    finite: bool = True
    differs: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class TimerFired:
    name: TimerName


@dataclass(frozen=True, slots=True)
class WatchBroken:
    """The connection to a watched peer broke: it died, or the path to it did."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class CheckAnswered:
    """A peer is alive; `unknown` are the microbatches of the question that it does not hold."""

    peer: PeerId
    unknown: tuple[MicrobatchId, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """`silent`: nothing came back in time (slow, frozen, or cut off). Otherwise: the peer is not there."""

    peer: PeerId
    reason: str
    silent: bool


@dataclass(frozen=True, slots=True)
class AverageDone:
    """`squared_norm` is of the average, -1 where that is not finite. `state`: digest of the weights that it is for, '' where
    they are not here, or not known by it."""

    iteration: int
    attempt: int
    digest: str
    seconds: float
    squared_norm: float = 0.0
    state: str = ""


@dataclass(frozen=True, slots=True)
class AverageFailed:
    """`finite`: False where this peer's own gradient is not, or a step with it would make weights that are not. `refused`: what
    the suspect has sent is not taken."""

    iteration: int
    attempt: int
    reason: str
    suspect: PeerId | None = None
    finite: bool = True
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Stepped:
    """The optimizer step of this iteration is applied: weights version is iteration + 1."""

    iteration: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Weights and optimizer state of this version are in place; the gradient is empty. `state` is their digest, as in
    `AverageDone`; '' where it is not known."""

    version: int
    state: str = ""


@dataclass(frozen=True, slots=True)
class WeightsDownloaded:
    """The weights of a Download that wants them first are in place, and the gradient is empty: microbatches can be computed.
    What the optimizer keeps with them is still coming; Downloaded tells when that is here too, or DownloadFailed."""

    version: int


@dataclass(frozen=True, slots=True)
class DownloadFailed:
    reason: str


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The checkpoint that a `Checkpoint` asked for is on the disk; or it is not, for this reason."""

    version: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint was written or removed: these versions can be restored. One is worth what was `epoch` when it was made."""

    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan that a `Plan` asked for; None when there is none for these peers."""

    plan: IterationPlan | None


@dataclass(frozen=True, slots=True)
class Signed:
    """The signature that a `Sign` of this name asked for."""

    name: str
    signature: str


@dataclass(frozen=True, slots=True)
class Digested:
    """The digests that a `Digest` asked for; None when not all four tensors are here."""

    microbatch: MicrobatchId
    digests: Digests | None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a `Gather` has brought: the digests of the four tensors, as the worker's neighbours had them; None, and why, when
    they did not come."""

    hop: Hop
    digests: Digests | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """This peer has evaluated the weights of this version: the mean loss, None where it is not finite."""

    version: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The user wants to stop: take nothing new, finish what is held, say `drained`."""


Event = (
    Started
    | ViewChanged
    | Ordered
    | Offered
    | Delivered
    | DeliveryBroken
    | PushAnswered
    | PushDelivered
    | PushFailed
    | Received
    | Misbehaved
    | SendFailed
    | Computed
    | TimerFired
    | WatchBroken
    | CheckAnswered
    | CheckFailed
    | AverageDone
    | AverageFailed
    | Stepped
    | Downloaded
    | WeightsDownloaded
    | DownloadFailed
    | Checkpointed
    | Kept
    | Planned
    | Signed
    | Digested
    | Gathered
    | Evaluated
    | DrainRequested
)
