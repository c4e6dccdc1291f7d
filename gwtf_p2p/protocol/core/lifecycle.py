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


@dataclass(slots=True, kw_only=True)
class HandedOn:
    """Who has got which tensor whole from this very peer, not from another one that had it: `delivered_to` the output,
    `returned_to` the input gradient."""

    delivered_to: PeerId | None = None
    returned_to: PeerId | None = None

    def delivered_whole(self, peer: PeerId) -> None:
        """The next peer."""
        self.delivered_to = peer

    def returned(self, peer: PeerId) -> None:
        """The peer before."""
        self.returned_to = peer


@dataclass(slots=True, kw_only=True)
class Downward(HandedOn):
    """What one peer knows of a microbatch's way down: to whom it is to go, to whom it has gone, and what came of that.

    `ahead` are the peers planned for the stages after this one, `ahead[0]` being the next; `beyond` is the successor's own
    successor as its `Complete` told, so that a replacement of the successor can join the path again. `handed` is how often it
    was handed on, `elsewhere` the generation in which its data peer has asked others to do so, `tried` are those that did not
    take it. `asked` counts how often a wait (either way) was too long, `late_at` is when the last one was, `taken_at` is when
    the next peer said that it takes it, `lost_at` is when the peer that had it fell silent. `walking`: the data peer has
    started again, and the next peer is yet to hear of it. `refused_since`: the data peer refuses a gradient of whose loss it
    knows nothing, and has `insisted` so often that the way be walked again.
    """

    ahead: tuple[PeerId, ...] = ()
    sending: Sending = Sending.IDLE
    successor: PeerId | None = None
    beyond: PeerId | None = None
    tried: set[PeerId] = field(default_factory=set)
    handed: int = 0
    elsewhere: int = -1
    push_token: int = 0
    asked: int = 0
    late_at: float = 0.0
    taken_at: float | None = None
    waits_since: float = 0.0
    lost_at: float | None = None
    refused_since: float | None = None
    insisted: int = 0
    walking: bool = False

    def go_by(self, ahead: tuple[PeerId, ...]) -> None:
        self.ahead = ahead

    def go_first_to(self, peer: PeerId) -> None:
        """And then as planned."""
        self.ahead = (peer, *self.ahead[1:])

    def pushed_to(self, peer: PeerId, token: int, now: float) -> None:
        """A push has begun."""
        self.push_token = token
        self.successor, self.beyond = peer, None
        self.waits_since, self.taken_at = now, None

    def hand(self) -> int:
        """The number of this handing on."""
        self.handed += 1
        return self.handed - 1

    def has_handed(self, times: int) -> None:
        """In a life of this peer that it has forgotten."""
        self.handed = max(self.handed, times)

    def taken(self, now: float) -> None:
        """The next peer wants it."""
        self.taken_at = now

    def accepted(self, now: float) -> None:
        """The next peer has it."""
        self.walking = False
        self.taken_at = self.taken_at or now
        self.tried.clear()
        self.asked = 0

    def may_try(self, peer: PeerId | None = None) -> None:
        """This peer again; without one, all."""
        if peer is None:
            self.tried.clear()
        else:
            self.tried.discard(peer)

    def tried_in_vain(self, peer: PeerId) -> None:
        self.tried.add(peer)

    def ask(self, now: float) -> float:
        """A wait was too long. Returns when one was last."""
        before, self.late_at = self.late_at, now
        self.asked += 1
        return before

    def heard(self) -> None:
        """What was waited for is here."""
        self.asked = 0

    def wait_from(self, now: float) -> None:
        self.waits_since = now

    def followed_by(self, peer: PeerId) -> None:
        """The successor has handed it on."""
        self.beyond = peer

    def returned_by(self, peer: PeerId) -> None:
        """Whoever hands back the gradient is the successor."""
        self.successor = peer

    def missed(self, at: float) -> None:
        """The peer that had it has been silent since, or forgot it."""
        if self.lost_at is None:
            self.lost_at = at

    def found(self) -> None:
        """It moves on."""
        self.lost_at = None

    def walk(self) -> None:
        self.walking = True

    def give_up(self, peer: PeerId, path: tuple[PeerId, ...]) -> None:
        """This successor is lost: another one takes its place on this path."""
        self.ahead = (peer, *path)
        self.tried.add(peer)
        self.successor = self.beyond = None
        self.asked = 0

    def refused(self, now: float) -> None:
        """The data peer refuses a gradient, knowing nothing of the loss."""
        self.refused_since = now

    def insist(self, now: float) -> None:
        """The way is to be walked once more."""
        self.refused_since = now
        self.insisted += 1


@dataclass(slots=True)
class Held(Downward):
    """All that one peer knows of one microbatch, besides the tensors. Others read its fields; its methods change them.

    `attempt` is the one that it came with (see `messages`); at its data peer `result_attempt` is the one that the result came
    with. `done_by` is who did the backward of all later stages. `keeps`: the activations of its forward are, or will be, kept
    for its backward. `got_from` has sent the input, `gradient_from` the output gradient: `predecessor` and `successor` may
    have been replaced since.
    """

    id: MicrobatchId
    attempt: Attempt
    phase: Phase
    predecessor: PeerId
    returning: Returning = Returning.IDLE
    got_from: PeerId | None = None
    gradient_from: PeerId | None = None
    done_by: tuple[PeerId, ...] = ()
    result_attempt: Attempt = ()
    return_token: int = 0
    order: int = 0
    computed_s: float = 0.0
    delivered_at: float = 0.0
    forward_held_s: float = 0.0
    unwanted: bool = False
    keeps: bool = True
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

    def queue_at(self, order: int) -> None:
        """Its place among what has come to this peer."""
        self.order = order

    # ---- how it came

    def offered_again(self, attempt: Attempt) -> bool:
        """In an attempt as high or higher; True when its data peer has started again meanwhile."""
        is_restarted = attempt[0] > self.attempt[0]
        self.unwanted, self.attempt = False, attempt
        return is_restarted

    def handed_by(self, peer: PeerId) -> None:
        """The peer that has the stage before, perhaps in the place of another."""
        self.predecessor = peer

    def delivered(self, sender: PeerId, now: float) -> None:
        self.got_from, self.delivered_at = sender, now

    def result_offered(self, attempt: Attempt) -> None:
        """Back at its data peer."""
        self.result_attempt = attempt

    def begin_again(self, generation: int, *, elsewhere: bool = False) -> None:
        """Its data peer hands it on above all attempts of lower generations, or has another one do so."""
        self.attempt = (generation,)
        self.elsewhere = generation if elsewhere else self.elsewhere

    def reach(self, generation: int) -> None:
        """Its data peer has had to begin again."""
        self.attempt = (max(self.attempt[0], generation), *self.attempt[1:])

    # ---- what is computed, and how it goes back

    def computed(self, seconds: float, loss: float | None) -> None:
        self.computed_s += seconds
        if loss is not None:
            self.loss = loss

    def keep_if(self, keeps: bool) -> None:
        """Its activations will be kept, or are freed: then its forward will be computed again."""
        self.keeps = keeps

    def forwarded(self, now: float) -> None:
        """Its forward is done."""
        self.forward_held_s = now - self.delivered_at

    def drop_later(self) -> None:
        """Nobody wants what is being computed."""
        self.unwanted = True

    def gradient_offered(self, peer: PeerId) -> None:
        self.gradient_from = peer

    def gradient_is_here(self, done_by: tuple[PeerId, ...]) -> None:
        self.done_by = done_by

    def return_with(self, token: int) -> None:
        """A push back has begun."""
        self.return_token = token

    def note(self, what: str, now: float) -> None:
        self.story.append(f"{now:.3f} {what}")
        del self.story[:-STORY_LENGTH]

    def _check(self, old: _State, new: _State, table: dict[_State, frozenset[_State]], now: float) -> None:
        self.note(f"{old.name} -> {new.name}", now)
        if new not in table[old]:
            raise LocalProtocolError(f"microbatch {self.id}: {old.name} -> {new.name} is not in the table", self.story)


def has_begun(held: Held, attempt: Attempt) -> bool:
    """Whether the data peer of a microbatch, which holds it so, can have had it handed on in this attempt: by itself, or by
    others that it has asked in this generation, by numbers of which it may have forgotten its own."""
    is_elsewhere = attempt[0] == held.attempt[0] == held.elsewhere
    return not held.handed or is_elsewhere or attempt[:2] < (held.attempt[0], held.handed)
