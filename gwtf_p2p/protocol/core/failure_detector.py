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

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.lost_peers import LostPeers
from gwtf_p2p.protocol.core.questions import Questions
from gwtf_p2p.protocol.effects import Effect, Unwatch, Watch
from gwtf_p2p.protocol.events import CheckAnswered, CheckFailed
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView

HEARTBEAT_S = 1.0
"""Silence of a peer that holds work, after which it is asked (see `neighbours`). A question that goes unanswered twice takes
two or three seconds more, so a frozen peer is found in under five."""


class Liveness:
    """Who is suspected (`questions`), lost (`lost_peers`) and watched by one peer. Methods append to the effect list that they
    are given."""

    heartbeat_s = HEARTBEAT_S

    def __init__(self, me: PeerId, timings: Timings) -> None:
        self.me = me
        self.questions = Questions(me, timings)
        self.lost_peers = LostPeers()
        self._heard_at: dict[PeerId, float] = {}
        self._watched: set[PeerId] = set()
        self._excluded: frozenset[PeerId] | None = None

    @property
    def lost(self) -> frozenset[PeerId]:
        """Not to be routed to, nor waited for."""
        return self.lost_peers.peers

    @property
    def suspected(self) -> frozenset[PeerId]:
        """Being asked."""
        return frozenset(self.questions.suspected)

    @property
    def back(self) -> frozenset[PeerId]:
        """Lost peers that have answered since, of which there is no record yet but the one that they were lost with."""
        return frozenset(self.lost_peers.back)

    @property
    def excluded(self) -> frozenset[PeerId]:
        """Not to be routed to now."""
        if self._excluded is None:
            self._excluded = self.lost | self.questions.doubtful
        return self._excluded

    def is_lost(self, peer: PeerId) -> bool:
        """Confirmed, by an own question or by the word of another."""
        return peer in self.lost_peers.lost

    def silent_since(self, peer: PeerId, now: float) -> float:
        """When a lost or suspected peer was first missed; `now` for others."""
        suspicion = self.questions.suspected.get(peer)
        return suspicion.since if suspicion is not None else self.lost_peers.missed_at.get(peer, now)

    # ---- signs of life

    def observe_view(self, view: NetworkView, out: list[Effect]) -> None:
        """A lost peer that published another record is probed."""
        self.questions.observe_view(view)
        for peer in self.lost_peers.observe_view(view):
            self._probe(peer, out)

    def silent_s(self, peer: PeerId, now: float) -> float:
        """Since it was last heard of; silence begins with the first question about it."""
        return now - self._heard_at.setdefault(peer, now)

    def heard_from(self, peer: PeerId, now: float, out: list[Effect]) -> None:
        """It has said something; if it was lost, that is a sign of life."""
        self._heard_at[peer] = now
        self._probe(peer, out)

    def _probe(self, peer: PeerId, out: list[Effect]) -> None:
        if self.lost_peers.probe(peer):
            out.append(self.questions.ask_lost(peer))

    # ---- watches

    def watch(self, peer: PeerId, out: list[Effect]) -> None:
        """Have it told when a connection to this peer breaks."""
        if peer != self.me and peer not in self._watched:
            self._watched.add(peer)
            out.append(Watch(peer))

    def watch_broke(self, peer: PeerId) -> None:
        """It is watched no more."""
        self._watched.discard(peer)

    # ---- suspicion and confirmation

    def may_ask(self, peer: PeerId, now: float) -> bool:
        """Not while it is asked already, nor right after it has answered."""
        return self.questions.may_ask(peer, now)

    def suspect(self, peer: PeerId, reason: str, now: float, microbatches: tuple[MicrobatchId, ...], out: list[Effect]) -> None:
        """Ask the peer, unless it is being asked already or is lost."""
        question = self.questions.ask(peer, reason, now, microbatches) if not self.is_lost(peer) else None
        if question is not None:
            out.append(question)

    def exclude(self, peer: PeerId) -> None:
        """A connection to a suspected peer broke, which says more than that it is late."""
        self.questions.exclude(peer)
        self._excluded = None

    def answered(self, event: CheckAnswered, now: float) -> bool:
        """True when a lost peer is back."""
        self._heard_at[event.peer] = now
        self.questions.answered(event.peer, event.seconds, now)
        self._excluded = None
        return self.lost_peers.answered(event.peer)

    def failed(self, event: CheckFailed, now: float, out: list[Effect]) -> str | None:
        """The reason why the peer is lost now, or None when it gets another chance or nobody asked."""
        self.lost_peers.end_probe(event.peer)
        suspicion = self.questions.suspected.get(event.peer)
        if suspicion is None:
            return None
        again = self.questions.ask_again(event.peer) if event.silent else None
        if again is not None:
            self._excluded = None
            out.append(again)
            return None
        waited = now - suspicion.since
        why = f"{suspicion.reason}; then {event.reason} to {suspicion.round} question(s) in {waited:.2f} s"
        self.declare_lost(event.peer, now, out)
        return why

    def declare_lost(self, peer: PeerId, now: float, out: list[Effect]) -> None:
        """Also used when somebody else has confirmed it."""
        self.lost_peers.add(peer, self.silent_since(peer, now) if peer in self.questions.suspected else now)
        self.questions.end(peer)
        self._excluded = None
        if peer in self._watched:
            self._watched.discard(peer)
            out.append(Unwatch(peer))

    def left(self, peer: PeerId, now: float, out: list[Effect]) -> bool:
        """It has said goodbye; False when that is known."""
        if self.lost_peers.has_left(peer):
            return False
        self.declare_lost(peer, now, out)
        self.lost_peers.leave(peer)
        return True
