"""Asking a suspected peer whether it lives: one question at a time, in two rounds, each with a deadline from measured times.

A peer that has just answered is not asked again because something is late. Silence ends a round; a refused connection ends them
all. One that has been silent once, or whose connection broke, is *doubtful*: nothing new is routed to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.effects import Ask
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkSource

CHECK_PRIOR_S = 0.8
"""Least first deadline of a question to a peer that is not known to be near, however fast others answer: that one may be behind
a circuit relay, or on another continent."""

LEAST_DEADLINE_S = 0.5
"""A question is small, but the machine that answers it may be busy: below this, silence says nothing."""

ROUND_TRIPS = 4.0
"""A question may take so many measured round trips of the link."""

ASK_AGAIN_S = 0.5
"""A peer that has just answered is not asked again because something is late. When a connection breaks, it is."""

ROUNDS = 2


@dataclass(slots=True)
class Suspicion:
    """Why a peer is asked, since when, in which round, and after what it is held to have. `excluded`: see `doubtful`."""

    reason: str
    since: float
    round: int
    excluded: bool
    microbatches: tuple[MicrobatchId, ...]


class Questions:
    """Of one peer, to the others."""

    def __init__(self, me: PeerId, timings: Timings) -> None:
        self.me, self.timings = me, timings
        self.suspected: dict[PeerId, Suspicion] = {}
        self._view: NetworkView | None = None
        self._answered_at: dict[PeerId, float] = {}
        self._took_s: dict[PeerId, float] = {}

    def observe_view(self, view: NetworkView) -> None:
        """It tells how far peers are."""
        self._view = view

    @property
    def doubtful(self) -> set[PeerId]:
        """Suspected with more reason than that they are late."""
        return {peer for peer, suspicion in self.suspected.items() if suspicion.excluded}

    def may_ask(self, peer: PeerId, now: float) -> bool:
        """Not while it is asked already, nor right after it has answered."""
        asked = peer == self.me or peer in self.suspected
        return not asked and now - self._answered_at.get(peer, -ASK_AGAIN_S) >= ASK_AGAIN_S

    def answered_at(self, peer: PeerId) -> float:
        """When it has answered last; minus infinity: never."""
        return self._answered_at.get(peer, -inf)

    def ask(self, peer: PeerId, reason: str, now: float, microbatches: tuple[MicrobatchId, ...]) -> Ask | None:
        """The first question; None while it is being asked."""
        if peer == self.me or peer in self.suspected:
            return None
        self.suspected[peer] = Suspicion(reason, now, 1, False, microbatches)
        return Ask(peer, microbatches, self._deadline_s(peer, 1))

    def ask_again(self, peer: PeerId) -> Ask | None:
        """It has been silent: the question of the next round; None after the last."""
        suspicion = self.suspected[peer]
        if suspicion.round >= ROUNDS:
            return None
        suspicion.round += 1
        suspicion.excluded = True
        return Ask(peer, suspicion.microbatches, self._deadline_s(peer, suspicion.round))

    def ask_lost(self, peer: PeerId) -> Ask:
        """A lost peer shows a sign of life. With the longest deadline: there is one question, and a far peer would stay lost
        for good."""
        return Ask(peer, (), self._deadline_s(peer, ROUNDS))

    def exclude(self, peer: PeerId) -> None:
        """A connection to a suspected peer broke, which says more than that it is late."""
        if peer in self.suspected:
            self.suspected[peer].excluded = True

    def answered(self, peer: PeerId, seconds: float, now: float) -> None:
        """It lives."""
        self._answered_at[peer] = now
        self._took_s[peer] = min(seconds, self._took_s.get(peer, inf))
        self.timings.observe(("check",), seconds)
        self.suspected.pop(peer, None)

    def end(self, peer: PeerId) -> None:
        """There is nothing more to ask."""
        self.suspected.pop(peer, None)

    def _deadline_s(self, peer: PeerId, round_: int) -> float:
        """From the answers of all peers so far, and how far this one is: by the link to it, or its quickest answer."""
        link = self._view.link(self.me, peer) if self._view is not None else None
        round_trip_s = self._took_s.get(peer, 0.0)
        if link is not None and link.source is not LinkSource.ASSUMED:
            round_trip_s = 2 * link.latency_s
        least_s = LEAST_DEADLINE_S if round_trip_s > 0 else CHECK_PRIOR_S
        measured_s = self.timings.deadline_s(("check",), least_s)
        return float(max(measured_s, least_s, ROUND_TRIPS * round_trip_s) * 2 ** (round_ - 1))
