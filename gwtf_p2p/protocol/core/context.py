"""What the parts of one peer's state machine share: who it is, what it holds, and the effects of the event at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gwtf_p2p.protocol.core.bars import BarBook
from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.core.holdings import Holdings
from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.core.lifecycle import DATA_PHASES, PHASES, Held, Phase, Returning, Sending
from gwtf_p2p.protocol.core.router import PlanningRouter, Router, TalkingRouter
from gwtf_p2p.protocol.effects import CancelPush, CancelTimer, Discard, DropActivations, Effect, Report, StartTimer
from gwtf_p2p.protocol.events import Timer, TimerName
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.run_parts import AuditTerms


def nobodys(peer: PeerId, text: str, signature: str) -> bool:
    """For peers that check no signatures: none is anybody's."""
    return False


SignedBy = Callable[[PeerId, str, str], bool]
Verify = Callable[[str, str, str], bool]
"""(key, text, signature): was this text signed with that key? It has no effects, and does not raise."""

TIMERS_OF_A_MICROBATCH = (Timer.PUSH, Timer.ROUTE, Timer.COMPLETE, Timer.BACKWARD, Timer.RETURN, Timer.ORPHAN)


@dataclass
class Context:
    """`stage` is 0 for a data peer, `stages` is S. `exact` is the run's `recovery`: redo what a lost peer had done.

    `held` is what `holdings` has, by id, for reading.

    `done_bytes` is what a peer keeps of a microbatch that is done, its four tensors in the bytes in which they travel; with
    `memory_limit_bytes` above 0 a stage peer is BUSY when what it has accepted would need more by the end of the iteration.
    `verify`: how signatures are looked at; None: nobody signs (`commit/certifying`). `audit` is by what others' work is done
    again, `signed_by` tells whether a text is a peer's, in this run: (peer, text, signature). `microbatches` are those of each
    data peer in an iteration; 0: any number. `holds_back`: this peer has something against a commit, for now. Of more than
    `all_with_all` peers a stage averages in rows (`averages/rows`).
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
    life: RunLife = field(default_factory=RunLife)
    audit: AuditTerms = field(default_factory=AuditTerms)
    signed_by: SignedBy = nobodys
    microbatches: int = 0
    all_with_all: int = 0
    view: NetworkView | None = None
    now: float = 0.0
    recoveries: Counter[str] = field(default_factory=Counter)
    incarnation: int = 0
    epoch: int = 0
    epoch_starts: tuple[int, ...] = ()
    out: list[Effect] = field(default_factory=list)
    pushes: dict[int, tuple[MicrobatchId, bool]] = field(default_factory=dict)
    bars: BarBook = field(default_factory=BarBook)
    verify: Verify | None = None
    holds_back: Callable[[], bool] = lambda: False
    _token: int = 0
    _armed: set[TimerName] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.holdings = Holdings(PHASES if self.stage > 0 else DATA_PHASES)
        self.held = self.holdings.by_id
        self.use_router(self.router)

    def use_router(self, router: Router) -> None:
        """Go by this one from now on. What else it can do is asked once, here: `isinstance` of a protocol looks up every one
        of its names, which was 17 % of a large simulation's CPU."""
        self.router = router
        self.planner = router if isinstance(router, PlanningRouter) else None
        self.talker = router if isinstance(router, TalkingRouter) else None

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
            self.liveness.suspect(peer, reason, self.now, self.holdings.shared_with(peer), self.out)
        if broken:
            self.liveness.exclude(peer)

    def has_answered(self, peer: PeerId, since: float) -> bool:
        """It lives, and has answered a question then or later. Another one may be open again."""
        return peer not in self.liveness.excluded and self.liveness.questions.answered_at(peer) >= since

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

    @property
    def occupancy(self) -> int:
        """How many of the held microbatches are not done."""
        return self.holdings.occupancy

    def move(self, held: Held, phase: Phase) -> None:
        """Raises LocalProtocolError when the table does not allow the step."""
        self.holdings.move(held, phase, self.now)

    def drop_activations(self, held: Held) -> None:
        """Its backward will compute the forward again."""
        self.holdings.drop_activations(held)
        self.out.append(DropActivations(held.id))

    def discard(self, held: Held) -> None:
        """Forget a microbatch and free its tensors."""
        for what in TIMERS_OF_A_MICROBATCH:
            self.cancel_timer(what, held.name)
        self.end_push(held.push_token, held.sending is Sending.PUSHING)
        self.end_push(held.return_token, held.returning is Returning.PUSHING)
        self.holdings.remove(held)
        self.out.append(Discard(held.id))

    def in_order(self) -> list[Held]:
        """Sorted by id, so that equal events give equal effects. For rare events: it looks at everything held."""
        return [self.held[m] for m in sorted(self.held)]

    @property
    def kept_bytes(self) -> int:
        """Tensors of all that is held, once it is done: what recovery may need until the iteration commits."""
        return len(self.held) * self.done_bytes

    @property
    def memory_is_full(self) -> bool:
        """Would one more microbatch, done and kept until the commit, go over the limit?"""
        return 0 < self.memory_limit_bytes < self.kept_bytes + self.done_bytes
