"""What the parts of one peer's state machine share: who it is, what it holds, and the effects of the event at hand.

What is held is indexed by what events name: the token of a push, the name of a timer, the work that waits. So an event costs
the same however much is held.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.core.lifecycle import (
    COMPUTING,
    DATA_PHASES,
    HOLDS_CAPACITY,
    KEEPS_ACTIVATIONS,
    PHASES,
    Held,
    Phase,
    Returning,
    Sending,
)
from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.effects import CancelPush, CancelTimer, Discard, DropActivations, Effect, Report, StartTimer
from gwtf_p2p.protocol.events import Timer, TimerName
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView

TIMERS_OF_A_MICROBATCH = (Timer.PUSH, Timer.ROUTE, Timer.COMPLETE, Timer.BACKWARD, Timer.RETURN, Timer.ORPHAN)
QUEUES = frozenset(phase for phase in Phase if phase.name.startswith("QUEUED"))


@dataclass
class Context:
    """`stage` is 0 for a data peer, `stages` is S. `exact` is the run's `recovery`: redo what a lost peer had done.

    `occupancy` counts the held microbatches that are not done, `activations` those between forward and backward whose
    activations are kept.

    `done_bytes` is what a peer keeps of a microbatch that is done, its four tensors in the bytes in which they travel; with
    `memory_limit_bytes` above 0 a stage peer is BUSY when what it has accepted would need more by the end of the iteration.
    """

    me: PeerId
    stage: Stage
    stages: int
    router: Router
    timings: Timings
    liveness: Liveness
    exact: bool = True
    done_bytes: int = 0
    memory_limit_bytes: int = 0
    held: dict[MicrobatchId, Held] = field(default_factory=dict)
    view: NetworkView | None = None
    now: float = 0.0
    recoveries: Counter[str] = field(default_factory=Counter)
    incarnation: int = 0
    epoch: int = 0
    epoch_starts: tuple[int, ...] = ()
    occupancy: int = 0
    activations: int = 0
    out: list[Effect] = field(default_factory=list)
    pushes: dict[int, tuple[MicrobatchId, bool]] = field(default_factory=dict)
    _token: int = 0
    _order: int = 0
    _armed: set[TimerName] = field(default_factory=set)
    _by_name: dict[str, Held] = field(default_factory=dict)
    _queues: dict[Phase, list[tuple[int, int, MicrobatchId]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.phases = PHASES if self.stage > 0 else DATA_PHASES
        self._queues = {phase: [] for phase in QUEUES}

    @property
    def past(self) -> Past:
        return Past(self.epoch, self.epoch_starts)

    # ---- effects

    def emit(self, *effects: Effect) -> None:
        self.out.extend(effects)

    def report(self, name: str, **fields: object) -> None:
        self.out.append(Report(name, fields))

    def start_timer(self, what: Timer, of: object, delay_s: float) -> None:
        name = (what, str(of))
        self._armed.add(name)
        self.out.append(StartTimer(name, delay_s))

    def cancel_timer(self, what: Timer, of: object) -> None:
        name = (what, str(of))
        if name in self._armed:
            self._armed.discard(name)
            self.out.append(CancelTimer(name))

    def timer_fired(self, name: TimerName) -> bool:
        """False when the timer was cancelled or replaced in the meantime and the event is stale."""
        if name not in self._armed:
            return False
        self._armed.discard(name)
        return True

    def is_armed(self, what: Timer, of: object) -> bool:
        return (what, str(of)) in self._armed

    def suspect(self, peer: PeerId, reason: str, broken: bool = False) -> None:
        """Ask a peer whether it lives and still holds what ties it to this peer; `broken`: a connection to it broke."""
        if broken or self.liveness.may_ask(peer, self.now):
            self.liveness.suspect(peer, reason, self.now, self.shared_with(peer), self.out)
        if broken:
            self.liveness.exclude(peer)

    # ---- pushes

    def new_push(self, held: Held, back: bool) -> int:
        self._token += 1
        self.pushes[self._token] = (held.id, back)
        return self._token

    def end_push(self, token: int, cancel: bool = False) -> None:
        """Nobody waits for an event of this push any more."""
        if self.pushes.pop(token, None) is not None and cancel:
            self.out.append(CancelPush(token))

    # ---- what is held

    def add(self, held: Held) -> None:
        """Take a microbatch in; later ones come after it in every queue."""
        self._order += 1
        held.queue_at(self._order)
        self.held[held.id] = held
        self._by_name[held.name] = held
        self.occupancy += held.phase in HOLDS_CAPACITY

    def move(self, held: Held, phase: Phase) -> None:
        """Raises LocalProtocolError when the table does not allow the step."""
        before = held.phase
        held.to_phase(phase, self.phases, self.now)
        self.occupancy += (phase in HOLDS_CAPACITY) - (before in HOLDS_CAPACITY)
        if held.keeps:
            self.activations += (phase in KEEPS_ACTIVATIONS) - (before in KEEPS_ACTIVATIONS)
        if phase in QUEUES:
            heapq.heappush(self._queues[phase], (held.id.iteration, held.order, held.id))

    def drop_activations(self, held: Held) -> None:
        """Its backward will compute the forward again."""
        assert held.keeps and held.phase in KEEPS_ACTIVATIONS
        held.give_room()
        self.activations -= 1
        self.out.append(DropActivations(held.id))

    def last_kept(self) -> Held | None:
        """Of the microbatches whose activations are kept and that are not being computed, the one that came last."""
        kept = (h for h in self.held.values() if h.keeps and h.phase in KEEPS_ACTIVATIONS and h.phase not in COMPUTING)
        return max(kept, key=lambda held: (held.id.iteration, held.order), default=None)

    def first_queued(self, phase: Phase) -> Held | None:
        """The oldest microbatch of the lowest iteration that waits in this phase."""
        queue = self._queues[phase]
        while queue:
            _, order, microbatch = queue[0]
            held = self.held.get(microbatch)
            if held is not None and held.phase is phase and held.order == order:
                return held
            heapq.heappop(queue)
        return None

    def discard(self, held: Held) -> None:
        """Forget a microbatch and free its tensors."""
        for what in TIMERS_OF_A_MICROBATCH:
            self.cancel_timer(what, held.name)
        self.end_push(held.push_token, held.sending is Sending.PUSHING)
        self.end_push(held.return_token, held.returning is Returning.PUSHING)
        self.occupancy -= held.phase in HOLDS_CAPACITY
        self.activations -= held.keeps and held.phase in KEEPS_ACTIVATIONS
        del self.held[held.id], self._by_name[held.name]
        self.out.append(Discard(held.id))

    def named(self, name: str) -> Held | None:
        """The microbatch of this name, if it is held."""
        return self._by_name.get(name)

    @property
    def kept_bytes(self) -> int:
        """Tensors of all that is held, once it is done: what recovery may need until the iteration commits."""
        return len(self.held) * self.done_bytes

    @property
    def memory_is_full(self) -> bool:
        """Would one more microbatch, done and kept until the commit, go over the limit?"""
        return 0 < self.memory_limit_bytes < self.kept_bytes + self.done_bytes

    def in_order(self) -> list[Held]:
        """Sorted by id, so that equal epochs give equal effects. For rare events: it looks at everything held."""
        return [self.held[m] for m in sorted(self.held)]

    def got_from(self, peer: PeerId) -> list[Held]:
        """What this peer has handed here, sorted by id."""
        return sorted((held for held in self.held.values() if held.predecessor == peer), key=lambda held: held.id)

    def shares(self, microbatch: MicrobatchId, peer: PeerId) -> bool:
        """Did it come from this peer, or go there?"""
        held = self.held.get(microbatch)
        return held is not None and peer in (held.predecessor, held.successor)

    def shared_with(self, peer: PeerId) -> tuple[MicrobatchId, ...]:
        """Handed to this peer, or got from it and not done yet."""
        handed = (Sending.PUSHING, Sending.AWAITING, Sending.RETURNED)
        return tuple(
            sorted(
                microbatch
                for microbatch, held in self.held.items()
                if (held.successor == peer and held.sending in handed)
                or (held.predecessor == peer and held.phase is not Phase.DONE)
            )
        )
