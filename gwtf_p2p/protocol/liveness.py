"""Who is alive? Suspicion first, then confirmation; a slow peer is not mistaken for a dead one.

A passed deadline, a broken watch or a failed push makes a peer *suspected*: it is asked. An answer clears it. An answer
that it is not there (its process or its host refuses the connection), or two silences in a row, the second with twice the
deadline, make it *lost*. A lost peer is not routed to until it publishes a record newer than the one it was lost with.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.events import Ask, CheckAnswered, CheckFailed, Effect, Unwatch, Watch
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.timings import Timings

CHECK_PRIOR_S = 1.0
"""First deadline of a question while no round trip is measured."""

LEAST_DEADLINE_S = 0.5
"""A question is small, but the machine that answers it may be busy: below this, silence says nothing."""

ROUNDS = 2


@dataclass(slots=True)
class _Suspicion:
    reason: str
    since: float
    round: int
    microbatches: tuple[MicrobatchId, ...]


class Liveness:
    """Suspected, lost and watched peers of one peer. Methods append to the effect list that they are given."""

    def __init__(self, me: PeerId, timings: Timings) -> None:
        self.me = me
        self._timings = timings
        self._suspected: dict[PeerId, _Suspicion] = {}
        self._lost: dict[PeerId, int] = {}
        self._sequence: dict[PeerId, int] = {}
        self._watched: set[PeerId] = set()

    @property
    def lost(self) -> frozenset[PeerId]:
        return frozenset(self._lost)

    @property
    def suspected(self) -> frozenset[PeerId]:
        return frozenset(self._suspected)

    def observe_view(self, view: NetworkView) -> None:
        """A record newer than the one that a peer was lost with makes it routable again."""
        self._sequence = {peer: record.sequence_number for peer, record in view.records.items()}
        for peer in [p for p, sequence in self._lost.items() if self._sequence.get(p, -1) > sequence]:
            del self._lost[peer]

    def watch(self, peer: PeerId, out: list[Effect]) -> None:
        if peer != self.me and peer not in self._watched:
            self._watched.add(peer)
            out.append(Watch(peer))

    def unwatch_all(self, out: list[Effect]) -> None:
        out.extend(Unwatch(peer) for peer in sorted(self._watched))
        self._watched.clear()

    def watch_broke(self, peer: PeerId) -> None:
        self._watched.discard(peer)

    def suspect(
        self, peer: PeerId, reason: str, now: float, microbatches: tuple[MicrobatchId, ...], out: list[Effect]
    ) -> None:
        """Ask the peer, unless it is being asked already or is lost."""
        if peer == self.me or peer in self._suspected or peer in self._lost:
            return
        self._suspected[peer] = _Suspicion(reason, now, 1, microbatches)
        out.append(Ask(peer, microbatches, self._deadline_s(1)))

    def answered(self, event: CheckAnswered) -> None:
        self._timings.observe(("check",), event.seconds)
        self._suspected.pop(event.peer, None)

    def failed(self, event: CheckFailed, now: float, out: list[Effect]) -> str | None:
        """The reason why the peer is lost now, or None when it gets another chance or nobody asked."""
        suspicion = self._suspected.get(event.peer)
        if suspicion is None:
            return None
        if event.silent and suspicion.round < ROUNDS:
            suspicion.round += 1
            out.append(Ask(event.peer, suspicion.microbatches, self._deadline_s(suspicion.round)))
            return None
        del self._suspected[event.peer]
        waited = now - suspicion.since
        why = f"{suspicion.reason}; then {event.reason} to {suspicion.round} question(s) in {waited:.2f} s"
        self.declare_lost(event.peer, out)
        return why

    def declare_lost(self, peer: PeerId, out: list[Effect]) -> None:
        """Also used when somebody else has confirmed it."""
        self._suspected.pop(peer, None)
        self._lost[peer] = self._sequence.get(peer, -1)
        if peer in self._watched:
            self._watched.discard(peer)
            out.append(Unwatch(peer))

    def _deadline_s(self, round_: int) -> float:
        measured = self._timings.deadline_s(("check",), CHECK_PRIOR_S)
        return float(max(measured, LEAST_DEADLINE_S) * 2 ** (round_ - 1))
