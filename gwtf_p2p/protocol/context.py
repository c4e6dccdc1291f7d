"""What the parts of one peer's state machine share: who it is, what it holds, and the effects of the event at hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.events import CancelTimer, Discard, Effect, Report, StartTimer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.liveness import Liveness
from gwtf_p2p.protocol.microbatch import Held
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.routers.base import Router
from gwtf_p2p.protocol.timings import Timings

TIMERS_OF_A_MICROBATCH = ("push", "route", "backward", "return")


@dataclass
class Context:
    """`stage` is 0 for a data peer, `stages` is S. `exact` is the run's `recovery`: redo what a lost peer had done."""

    me: PeerId
    stage: Stage
    stages: int
    router: Router
    exact: bool = True
    timings: Timings = field(default_factory=Timings)
    held: dict[MicrobatchId, Held] = field(default_factory=dict)
    view: NetworkView | None = None
    now: float = 0.0
    out: list[Effect] = field(default_factory=list)
    _token: int = 0
    _armed: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.liveness = Liveness(self.me, self.timings)

    def emit(self, *effects: Effect) -> None:
        self.out.extend(effects)

    def report(self, name: str, **fields: object) -> None:
        self.out.append(Report(name, fields))

    def new_token(self) -> int:
        self._token += 1
        return self._token

    def start_timer(self, what: str, of: object, delay_s: float) -> None:
        self._armed.add((what, str(of)))
        self.out.append(StartTimer((what, str(of)), delay_s))

    def cancel_timer(self, what: str, of: object) -> None:
        name = (what, str(of))
        if name in self._armed:
            self._armed.discard(name)
            self.out.append(CancelTimer(name))

    def timer_fired(self, name: tuple[str, str]) -> bool:
        """False when the timer was cancelled or replaced in the meantime and the event is stale."""
        if name not in self._armed:
            return False
        self._armed.discard(name)
        return True

    def suspect(self, peer: PeerId, reason: str) -> None:
        """Ask a peer whether it lives and still holds what it was handed."""
        awaited = tuple(sorted(m for m, h in self.held.items() if h.successor == peer and h.handoff.name == "AWAITING"))
        self.liveness.suspect(peer, reason, self.now, awaited, self.out)

    def discard(self, held: Held) -> None:
        """Forget a microbatch and free its tensors."""
        for what in TIMERS_OF_A_MICROBATCH:
            self.cancel_timer(what, held.id)
        del self.held[held.id]
        self.out.append(Discard(held.id))

    def in_order(self) -> list[Held]:
        """Sorted by id, so that equal histories give equal effects."""
        return [self.held[m] for m in sorted(self.held)]
