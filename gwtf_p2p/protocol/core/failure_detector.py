"""Who is alive? Suspicion first, then confirmation; a slow peer is not mistaken for a dead one.

A passed deadline, a broken watch or a failed push makes a peer *suspected*: it is asked. An answer clears it. An answer
that it is not there (its process or its host refuses the connection), or two silences in a row, the second with twice the
deadline, make it *lost*. So does the word of another peer that has confirmed it, after one silence or a broken connection
here. A lost peer is not routed to, nor is one that has been silent once, or whose connection broke: but one that is only late
is, as it is most likely busy. A sign of life (a message from it, a record other than the one that it was lost with) makes it
*probed*: it is asked, and an answer brings it back; but that it serves, only a new record shows: a program that has been
started again answers too, while its old record still says ONLINE. A peer that says goodbye has *left*: it is no more routed
to than a lost one, but nobody asks after it, until it publishes that it has started again.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.effects import Ask, Effect, Unwatch, Watch
from gwtf_p2p.protocol.events import CheckAnswered, CheckFailed
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkSource, PeerState

CHECK_PRIOR_S = 0.8
"""First deadline of a question while no round trip is measured."""

LEAST_DEADLINE_S = 0.5
"""A question is small, but the machine that answers it may be busy: below this, silence says nothing."""

HEARTBEAT_S = 1.0
"""Silence of a peer that holds work, after which it is asked (see `heartbeat`). A question that goes unanswered twice takes
two or three seconds more, so a frozen peer is found in under five."""

ROUND_TRIPS = 4.0
"""A question may take so many measured round trips of the link."""

ASK_AGAIN_S = 0.5
"""A peer that has just answered is not asked again because something is late. When a connection breaks, it is."""

ROUNDS = 2
NO_RECORD = -1


@dataclass(slots=True)
class _Suspicion:
    reason: str
    since: float
    round: int
    excluded: bool
    microbatches: tuple[MicrobatchId, ...]


class Liveness:
    """Suspected, lost, probed and watched peers of one peer. Methods append to the effect list that they are given."""

    heartbeat_s = HEARTBEAT_S

    def __init__(self, me: PeerId, timings: Timings) -> None:
        self.me = me
        self._timings = timings
        self._suspected: dict[PeerId, _Suspicion] = {}
        self._lost: dict[PeerId, int] = {}
        self._lost_with: dict[PeerId, int] = {}
        self._back: dict[PeerId, int] = {}
        self._left: set[PeerId] = set()
        self._silent_since: dict[PeerId, float] = {}
        self._answered_at: dict[PeerId, float] = {}
        self._heard_at: dict[PeerId, float] = {}
        self._probed: set[PeerId] = set()
        self._view: NetworkView | None = None
        self._watched: set[PeerId] = set()
        self._excluded: frozenset[PeerId] | None = None

    @property
    def lost(self) -> frozenset[PeerId]:
        return frozenset(self._lost)

    @property
    def suspected(self) -> frozenset[PeerId]:
        return frozenset(self._suspected)

    @property
    def back(self) -> frozenset[PeerId]:
        """Lost peers that have answered since, of which there is no record yet but the one that they were lost with."""
        return frozenset(self._back)

    @property
    def excluded(self) -> frozenset[PeerId]:
        """Not to be routed to now."""
        if self._excluded is None:
            self._excluded = frozenset(self._lost) | {peer for peer, s in self._suspected.items() if s.excluded}
        return self._excluded

    def is_lost(self, peer: PeerId) -> bool:
        return peer in self._lost

    def silent_since(self, peer: PeerId, now: float) -> float:
        """When a lost or suspected peer was first missed; `now` for others."""
        suspicion = self._suspected.get(peer)
        return suspicion.since if suspicion is not None else self._silent_since.get(peer, now)

    # ---- signs of life

    def observe_view(self, view: NetworkView, out: list[Effect]) -> None:
        """A lost peer that published another record is probed."""
        self._view = view
        self._back = {peer: sequence for peer, sequence in self._back.items() if self._sequence(peer) == sequence}
        for peer, sequence in sorted(self._lost.items()):
            now = self._sequence(peer)
            if now in (sequence, NO_RECORD):
                continue
            self._lost[peer] = now
            if view.records[peer].state is not PeerState.DRAINING:
                self._left.discard(peer)
            self._probe(peer, out)

    def _sequence(self, peer: PeerId) -> int:
        """Of the peer's newest record."""
        record = self._view.records.get(peer) if self._view is not None else None
        return record.sequence_number if record is not None else NO_RECORD

    def silent_s(self, peer: PeerId, now: float) -> float:
        """Since it was last heard of; silence begins with the first question about it."""
        return now - self._heard_at.setdefault(peer, now)

    def heard_from(self, peer: PeerId, now: float, out: list[Effect]) -> None:
        """It has said something; if it was lost, that is a sign of life."""
        self._heard_at[peer] = now
        self._probe(peer, out)

    def _probe(self, peer: PeerId, out: list[Effect]) -> None:
        if peer in self._lost and peer not in self._probed and peer not in self._left:
            self._probed.add(peer)
            # With the longest deadline: there is one question, and a far peer would stay lost for good.
            out.append(Ask(peer, (), self._deadline_s(peer, ROUNDS)))

    # ---- watches

    def watch(self, peer: PeerId, out: list[Effect]) -> None:
        if peer != self.me and peer not in self._watched:
            self._watched.add(peer)
            out.append(Watch(peer))

    def unwatch_all(self, out: list[Effect]) -> None:
        out.extend(Unwatch(peer) for peer in sorted(self._watched))
        self._watched.clear()

    def watch_broke(self, peer: PeerId) -> None:
        self._watched.discard(peer)

    # ---- suspicion and confirmation

    def may_ask(self, peer: PeerId, now: float) -> bool:
        """Not while it is asked already, nor right after it has answered."""
        asked = peer == self.me or peer in self._suspected
        return not asked and now - self._answered_at.get(peer, -ASK_AGAIN_S) >= ASK_AGAIN_S

    def suspect(self, peer: PeerId, reason: str, now: float, microbatches: tuple[MicrobatchId, ...], out: list[Effect]) -> None:
        """Ask the peer, unless it is being asked already or is lost."""
        if peer != self.me and peer not in self._suspected and peer not in self._lost:
            self._suspected[peer] = _Suspicion(reason, now, 1, False, microbatches)
            out.append(Ask(peer, microbatches, self._deadline_s(peer, 1)))

    def exclude(self, peer: PeerId) -> None:
        """A connection to a suspected peer broke, which says more than that it is late."""
        if peer in self._suspected:
            self._suspected[peer].excluded = True
            self._excluded = None

    def answered(self, event: CheckAnswered, now: float) -> bool:
        """True when a lost peer is back."""
        self._answered_at[event.peer] = self._heard_at[event.peer] = now
        self._left.discard(event.peer)
        self._timings.observe(("check",), event.seconds)
        self._suspected.pop(event.peer, None)
        self._probed.discard(event.peer)
        self._excluded = None
        if self._lost.pop(event.peer, None) is None:
            return False
        lost_with = self._lost_with.pop(event.peer, NO_RECORD)
        if lost_with == self._sequence(event.peer):
            self._back[event.peer] = lost_with
        return True

    def failed(self, event: CheckFailed, now: float, out: list[Effect]) -> str | None:
        """The reason why the peer is lost now, or None when it gets another chance or nobody asked."""
        self._probed.discard(event.peer)
        suspicion = self._suspected.get(event.peer)
        if suspicion is None:
            return None
        if event.silent and suspicion.round < ROUNDS:
            suspicion.round += 1
            suspicion.excluded, self._excluded = True, None
            out.append(Ask(event.peer, suspicion.microbatches, self._deadline_s(event.peer, suspicion.round)))
            return None
        waited = now - suspicion.since
        why = f"{suspicion.reason}; then {event.reason} to {suspicion.round} question(s) in {waited:.2f} s"
        self.declare_lost(event.peer, now, out)
        return why

    def declare_lost(self, peer: PeerId, now: float, out: list[Effect]) -> None:
        """Also used when somebody else has confirmed it."""
        self._silent_since[peer] = self.silent_since(peer, now) if peer in self._suspected else now
        self._suspected.pop(peer, None)
        self._excluded = None
        self._back.pop(peer, None)
        self._lost[peer] = self._lost_with[peer] = self._sequence(peer)
        if peer in self._watched:
            self._watched.discard(peer)
            out.append(Unwatch(peer))

    def left(self, peer: PeerId, now: float, out: list[Effect]) -> bool:
        """It has said goodbye; False when that is known."""
        if peer in self._left:
            return False
        self.declare_lost(peer, now, out)
        self._left.add(peer)
        return True

    def _deadline_s(self, peer: PeerId, round_: int) -> float:
        """From the answers of all peers so far, and the link to this one."""
        link = self._view.link(self.me, peer) if self._view is not None else None
        known = link is not None and link.source is not LinkSource.ASSUMED
        far_s = 2 * ROUND_TRIPS * link.latency_s if link is not None and known else 0.0
        measured = self._timings.deadline_s(("check",), LEAST_DEADLINE_S if known else CHECK_PRIOR_S)
        return float(max(measured, LEAST_DEADLINE_S, far_s) * 2 ** (round_ - 1))
