"""Life of a microbatch at one peer: the transition table that the code, the tests and the documentation read.

A stage peer walks the first block, a data peer the second. `Sending` (towards the next stage) and `Returning` (towards the
previous one) are separate lives, since a neighbour can be replaced at any point of the computation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import Attempt


class Phase(Enum):
    """Where the computation of a microbatch stands at this peer."""

    # stage peers
    RECEIVING = "RECEIVING"
    QUEUED_FORWARD = "QUEUED_FORWARD"
    FORWARD = "FORWARD"
    FORWARDED = "FORWARDED"
    RECEIVING_GRADIENT = "RECEIVING_GRADIENT"
    QUEUED_BACKWARD = "QUEUED_BACKWARD"
    BACKWARD = "BACKWARD"
    # data peers
    PENDING = "PENDING"
    QUEUED_EMBED = "QUEUED_EMBED"
    EMBED = "EMBED"
    TRAVELLING = "TRAVELLING"
    RECEIVING_RESULT = "RECEIVING_RESULT"
    QUEUED_LOSS = "QUEUED_LOSS"
    LOSS = "LOSS"
    RETURNING = "RETURNING"
    QUEUED_FINISH = "QUEUED_FINISH"
    FINISH = "FINISH"
    # both
    DONE = "DONE"


class Sending(Enum):
    """Towards the next stage: my output."""

    IDLE = "IDLE"
    ROUTING = "ROUTING"
    PUSHING = "PUSHING"
    AWAITING = "AWAITING"
    RETURNED = "RETURNED"


class Returning(Enum):
    """Towards the previous stage: my input gradient."""

    IDLE = "IDLE"
    PUSHING = "PUSHING"
    BLOCKED = "BLOCKED"
    HELD = "HELD"


_P, _O, _B = Phase, Sending, Returning

PHASES: dict[Phase, frozenset[Phase]] = {
    _P.RECEIVING: frozenset({_P.QUEUED_FORWARD}),
    _P.QUEUED_FORWARD: frozenset({_P.FORWARD}),
    _P.FORWARD: frozenset({_P.FORWARDED}),
    _P.FORWARDED: frozenset({_P.RECEIVING_GRADIENT}),
    _P.RECEIVING_GRADIENT: frozenset({_P.QUEUED_BACKWARD, _P.FORWARDED}),
    _P.QUEUED_BACKWARD: frozenset({_P.BACKWARD}),
    _P.BACKWARD: frozenset({_P.DONE}),
    _P.PENDING: frozenset({_P.QUEUED_EMBED}),
    _P.QUEUED_EMBED: frozenset({_P.EMBED}),
    _P.EMBED: frozenset({_P.TRAVELLING}),
    _P.TRAVELLING: frozenset({_P.RECEIVING_RESULT}),
    _P.RECEIVING_RESULT: frozenset({_P.QUEUED_LOSS, _P.TRAVELLING}),
    _P.QUEUED_LOSS: frozenset({_P.LOSS}),
    _P.LOSS: frozenset({_P.RETURNING}),
    _P.RETURNING: frozenset({_P.RECEIVING_GRADIENT}),
    _P.QUEUED_FINISH: frozenset({_P.FINISH}),
    _P.FINISH: frozenset({_P.DONE}),
    _P.DONE: frozenset(),
}

DATA_PHASES: dict[Phase, frozenset[Phase]] = {
    **PHASES,
    _P.RECEIVING_GRADIENT: frozenset({_P.QUEUED_FINISH, _P.RETURNING}),
}

SENDING_STEPS: dict[Sending, frozenset[Sending]] = {
    _O.IDLE: frozenset({_O.ROUTING}),
    _O.ROUTING: frozenset({_O.PUSHING, _O.RETURNED}),
    _O.PUSHING: frozenset({_O.ROUTING, _O.AWAITING, _O.RETURNED}),
    _O.AWAITING: frozenset({_O.ROUTING, _O.RETURNED}),
    _O.RETURNED: frozenset({_O.ROUTING}),
}

RETURNING_STEPS: dict[Returning, frozenset[Returning]] = {
    _B.IDLE: frozenset({_B.PUSHING}),
    _B.PUSHING: frozenset({_B.PUSHING, _B.BLOCKED, _B.HELD}),
    _B.BLOCKED: frozenset({_B.PUSHING}),
    _B.HELD: frozenset({_B.PUSHING}),
}

HOLDS_CAPACITY = frozenset(Phase) - {Phase.DONE, Phase.PENDING}
"""From forward accepted to backward done: these count against a stage peer's capacity."""

KEEPS_ACTIVATIONS = frozenset({_P.FORWARD, _P.FORWARDED, _P.RECEIVING_GRADIENT, _P.QUEUED_BACKWARD, _P.BACKWARD})
"""Of a stage peer: from the start of the forward to the end of the backward."""

COMPUTING = frozenset({_P.FORWARD, _P.BACKWARD, _P.EMBED, _P.LOSS, _P.FINISH})
HAS_GRADIENT = frozenset({_P.QUEUED_BACKWARD, _P.BACKWARD, _P.DONE})
"""Of a stage peer: the gradient of its output is here."""


def done_bytes(activation_bytes: int, gradient_bytes: int) -> int:
    """What a peer keeps of a microbatch when it is done, until the iteration commits, enough to redo either neighbour.

    That is its input, output, output gradient and input gradient, each as it travels.
    """
    return 2 * activation_bytes + 2 * gradient_bytes


_State = TypeVar("_State", Phase, Sending, Returning)

STORY_LENGTH = 40


@dataclass(slots=True)
class Held:
    """All that one peer knows of one microbatch, besides the tensors.

    `attempt` is the one that it came with (see `messages`), `handed` how often it was handed on; at its data peer
    `result_attempt` is the one that the result came with. `ahead` are the peers planned for the stages after this one,
    `ahead[0]` being the next; `beyond` is the successor's own successor as its `Complete` told, so that a replacement of
    the successor can join the path again. `done_by` is who did the backward of all later stages. `asked` counts how often
    a wait was too long, `taken_at` is when the next peer said that it takes it, `lost_at` is when the peer that had it fell
    silent. `walking`: the data peer has started again, and the next peer is yet to hear of it. `refused_since`: the data peer
    refuses a gradient of whose loss it knows nothing, and has `insisted` so often that the way be walked again. `keeps`: the
    activations of its forward are, or will be, kept for its backward.
    """

    id: MicrobatchId
    attempt: Attempt
    phase: Phase
    predecessor: PeerId
    ahead: tuple[PeerId, ...] = ()
    sending: Sending = Sending.IDLE
    returning: Returning = Returning.IDLE
    successor: PeerId | None = None
    gradient_from: PeerId | None = None
    beyond: PeerId | None = None
    tried: set[PeerId] = field(default_factory=set)
    done_by: tuple[PeerId, ...] = ()
    handed: int = 0
    result_attempt: Attempt = ()
    push_token: int = 0
    return_token: int = 0
    order: int = 0
    asked: int = 0
    computed_s: float = 0.0
    delivered_at: float = 0.0
    forward_held_s: float = 0.0
    taken_at: float | None = None
    waits_since: float = 0.0
    lost_at: float | None = None
    refused_since: float | None = None
    insisted: int = 0
    unwanted: bool = False
    keeps: bool = True
    walking: bool = False
    loss: float | None = None
    story: list[str] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        self.name = str(self.id)

    def to_phase(self, phase: Phase, table: dict[Phase, frozenset[Phase]], now: float) -> None:
        """Raises LocalProtocolError with this microbatch's story when the table does not allow the step."""
        self._check(self.phase, phase, table, now)
        self.phase = phase

    def to_sending(self, sending: Sending, now: float) -> None:
        self._check(self.sending, sending, SENDING_STEPS, now)
        self.sending = sending

    def to_returning(self, returning: Returning, now: float) -> None:
        self._check(self.returning, returning, RETURNING_STEPS, now)
        self.returning = returning

    def note(self, what: str, now: float) -> None:
        self.story.append(f"{now:.3f} {what}")
        del self.story[:-STORY_LENGTH]

    def _check(self, old: _State, new: _State, table: dict[_State, frozenset[_State]], now: float) -> None:
        self.note(f"{old.name} -> {new.name}", now)
        if new not in table[old]:
            raise LocalProtocolError(f"microbatch {self.id}: {old.name} -> {new.name} is not in the table", self.story)
