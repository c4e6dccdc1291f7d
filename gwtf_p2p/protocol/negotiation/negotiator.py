"""Flows by negotiation between peers that know their neighbours only: GWTF's decentralised algorithm (arXiv 2509.21221).

The problem is `problem`'s: the most flows, each from its data peer through one peer per stage and back, no peer above its
capacity, at the least total cost. Nobody sees it whole. A peer knows the cost of its hops to the peers of the stages before
and after, who is beside it, and what the next stage offers; the rest is messages (`negotiation_messages`).

From the authors' prototype of 2024, which is 18 months older than the paper, come: paths that grow from the sink back; Request
Flow, accepted when the quoted cost still holds, and a rejection that returns the true cost; costs that propagate one stage per
message; Request Change and Request Redirect with simulated annealing; pathless flows that are pushed back, and spare paths that
are cancelled, after 12 ticks of 2 s; CHECK_FLOW. The paper's body was not available, so nothing else is ascribed to it.

Ours, since two peers of a stage that compare one flow each settle too early (5 to 8 % above the optimum on the published
instances), are:

- *More is compared at once*: whoever asks for a move tells all its flows, and the one asked draws among all moves with any of
  its own (`negotiation_moves`), heat-bath instead of one proposal at a time. Moves between flows of different data peers, and
  with spare paths, are among them.
- *T falls with time*, in all peers alike (`NegotiationConfig`), instead of by 0.95 per performed move: stages with many moves
  froze before the others had found theirs. T is in parts of the mean cost of a hop, as costs here are microseconds. At last
  only moves that save are made, until three rounds were in vain. A new or a lost neighbour heats up again. For a problem file
  it is hotter and slower than in a swarm, where microbatches wait for good flows.
- *Switch*: a flow takes a cheaper spare path of the next stage (`PathRequests.switch`).
- *Prices*: a data peer with fewer flows than it wants may take over another's, if all together gain (`negotiation_offers`). How
  flows are divided between two data peers decides about up to a quarter of the cost (13,135 against 10,588 for the worst and
  the best division of `two_data_peers_6x6`).
- Requests are made when something changes, not per tick; ticks of 0.5 s (patience is the prototype's 24 s), with a move tried
  in every second one; the receiver locks the flows concerned instead of refusing whenever it has asked for something itself.
- A peer that finds no path on offer asks one of the next stage to look for one, less and less often. Spare paths that nobody
  took are renewed less and less often.
- Hops change hands under versions (`negotiation_messages`), so no order of messages breaks the books.

Pure: time is an argument, `random` must be the peer's own. Two peers' negotiators talk through `hear` and `take_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.annealing import Moves
from gwtf_p2p.protocol.negotiation.flow_checks import FlowChecks
from gwtf_p2p.protocol.negotiation.hop_ends import HopEnds
from gwtf_p2p.protocol.negotiation.idle_slots import IdleSlots
from gwtf_p2p.protocol.negotiation.offers import Advert, offers_of, prices_of
from gwtf_p2p.protocol.negotiation.path_grants import PathGrants
from gwtf_p2p.protocol.negotiation.path_requests import PathRequests
from gwtf_p2p.protocol.negotiation.requests import Search
from gwtf_p2p.protocol.negotiation.side import Near, NegotiationConfig, Side
from gwtf_p2p.protocol.negotiation.slots import Slot, Slots
from gwtf_p2p.protocol.wire.negotiation_messages import (
    DOWNWARD,
    CancelFlow,
    ChangeAnswer,
    CheckFlows,
    FlowAnswer,
    NegotiationMessage,
    PathIs,
    PathLost,
    RedirectAnswer,
    RequestChange,
    RequestFlow,
    RequestRedirect,
    UnknownFlows,
    UpstreamIs,
)

ANSWER_S = 15.0
"""After which a request counts as refused. The transport tells of lost messages and peers long before."""

REHEATED = 0.5
"""Part of the first temperature to which a change around a peer heats it."""

COST_NOISE = 0.1
"""A hop's cost is taken for unchanged within this part: measured times are never still."""

Said = list[tuple[PeerId, NegotiationMessage]]


class _SideParts:
    """A side with its rules."""

    def __init__(self, me: PeerId, config: NegotiationConfig, random: Random, slots: Slots) -> None:
        self.side = Side(me, config, random, slots)
        self.idle = IdleSlots(self.side)
        self.requests = PathRequests(self.side, self.idle)
        self.grants = PathGrants(self.side, self.idle)
        self.ends = HopEnds(self.side)
        self.checks = FlowChecks(self.side)
        self.search = Search(self.side)
        self.moves = Moves(self.side, self.search)
        self._checked_at = 0.0
        self._hops: frozenset[str] = frozenset()

    def hear(self, sender: PeerId, message: NegotiationMessage) -> None:
        side, pending = self.side, self.side.pending
        link = getattr(message, "link", None)
        if pending is not None and link in pending.links and not isinstance(message, FlowAnswer):
            pending.early.append((sender, message))
            return
        given = side.given_down if isinstance(message, DOWNWARD) else side.given_up
        if link in given and not isinstance(message, (RequestFlow, FlowAnswer)):
            side.say(given[link][0], message)
            return
        self._dispatch(sender, message)
        self.requests.wish()

    def _dispatch(self, sender: PeerId, message: NegotiationMessage) -> None:
        ends = self.ends
        match message:
            case RequestFlow():
                self.grants.requested(sender, message)
            case UpstreamIs():
                ends.upstream_is(message)
            case PathIs():
                ends.path_is(message)
            case CancelFlow():
                ends.cancelled(message)
            case PathLost():
                ends.path_lost(message)
            case CheckFlows():
                self.checks.checked(sender, message)
            case UnknownFlows():
                self.checks.unknown(sender, message)
            case RequestChange():
                self.moves.change_requested(sender, message)
            case RequestRedirect():
                self.moves.redirect_requested(sender, message)
            case FlowAnswer() | ChangeAnswer() | RedirectAnswer():
                self._answered(sender, message)

    def _answered(self, sender: PeerId, message: FlowAnswer | ChangeAnswer | RedirectAnswer) -> None:
        pending = self.side.pending
        if isinstance(message, FlowAnswer):
            self.requests.answered(sender, message)
            if pending is not None and pending.key == message.link:
                self._end_pending()
        elif pending is not None and (pending.peer, pending.key) == (sender, message.token):
            if isinstance(message, ChangeAnswer):
                self.search.change_answered(sender, message, pending.slots)
            else:
                self.search.redirect_answered(sender, message, pending.slots)
            self._end_pending()
        elif isinstance(message, ChangeAnswer) and message.outflow is not None:
            # Too late: nobody holds what it has given away.
            self.side.say(message.outflow.peer, CancelFlow(message.outflow.link, message.outflow.said + 1))
            if message.inflow is not None:
                self.side.say(message.inflow.peer, PathLost(message.inflow.link, message.inflow.said + 1))

    def _end_pending(self) -> None:
        """The request is answered, or never will be: what has waited for that is heard now."""
        side, pending = self.side, self.side.pending
        assert pending is not None
        side.pending = None
        for slot in pending.slots:
            side.slots.unlock(slot)
            side.refresh(slot)
        for sender, message in pending.early:
            self.hear(sender, message)

    def gone(self, peer: PeerId) -> None:
        """A peer is lost, or may not be routed to; `know` brings it back."""
        self.ends.gone(peer)
        self.side.near = self.side.near.without(peer)
        if self.side.pending is not None and self.side.pending.peer == peer:
            self._end_pending()
        self.search.reheat(REHEATED)
        self.requests.wish()

    def tick(self) -> None:
        side = self.side
        if side.pending is not None and side.now - side.pending.since > ANSWER_S:
            self._end_pending()
        side.forget()
        self.idle.lose_patience()
        if side.now - self._checked_at >= side.config.check_s:
            self._checked_at = side.now
            self.checks.check()
        hops = frozenset([*side.slots.by_in, *side.slots.by_out])
        if hops != self._hops:
            self._hops = hops
            self.search.stir()
        self.requests.wish()
        if side.random.random() < side.config.search:
            moved = self.requests.switch() or self.requests.take_over(self.search.temperature_us)
            if not moved:
                self.search.step()

    def know(self, near: Near, capacity: int) -> None:
        """Who is around, and what this side may hold."""
        side, before = self.side, self.side.near
        near = Near(_steady(before.before_us, near.before_us), _steady(before.after_us, near.after_us), near.beside)
        if near == before and capacity == side.slots.capacity:
            return
        lost = [p for p in (*before.before_us, *before.after_us) if p not in near.before_us and p not in near.after_us]
        for peer in lost:
            self.gone(peer)
        new = (near.before_us.keys() | near.after_us.keys()) - before.before_us.keys() - before.after_us.keys()
        for peer in (*near.before_us, *near.after_us):
            side.gone.pop(peer, None)
        side.near, side.slots.capacity = near, capacity
        if new or set(near.beside) != set(before.beside):
            self.search.reheat(REHEATED)
        self.idle.trim()
        for slot in side.slots:
            side.refresh(slot)
        self.requests.wish()


class Negotiator:
    """Of one peer. `messages` counts what it has said. `side` of a stage peer; a data peer has `source` and `sink`."""

    def __init__(self, me: PeerId, config: NegotiationConfig, random: Random, *, is_data_peer: bool) -> None:
        self.me, self.config = me, config
        self.messages = 0
        self._advert = Advert({}, {})
        self._said: Said = []

        def part(*, is_source: bool, is_sink: bool) -> _SideParts:
            return _SideParts(me, config, random, Slots(is_source=is_source, is_sink=is_sink))

        self._up = part(is_source=is_data_peer, is_sink=False)
        self._down = part(is_source=False, is_sink=True) if is_data_peer else self._up

    @property
    def parts(self) -> tuple[_SideParts, ...]:
        return (self._up,) if self._up is self._down else (self._up, self._down)

    @property
    def slots(self) -> Slots:
        """Of a stage peer, or of a data peer as source: the flows that it uses."""
        return self._up.side.slots

    @property
    def sink_slots(self) -> Slots:
        """Of a data peer as sink; a stage peer's only ones."""
        return self._down.side.slots

    @property
    def flows(self) -> list[Slot]:
        """With a path, as far as is known here."""
        return [s for s in self.slots if s.outflow is not None and self.slots.is_used(s)]

    @property
    def moves(self) -> int:
        return sum(part.side.moves for part in self.parts)

    @property
    def has_converged(self) -> bool:
        """No request is under way, and nothing is to be gained that this peer knows of."""
        up = self._up.side
        nothing = up.slots.is_source or not up.near.beside or not up.slots.complete()
        resting = nothing or self._up.search.is_done
        return resting and not self._up.requests.is_hopeful and all(p.side.pending is None for p in self.parts)

    # ---- what it learns

    def know(self, near: Near, capacity: int, now: float) -> None:
        """`near` of a data peer: stage S before it, stage 1 after it. Its capacity is how many flows it wants."""
        self._at(now)
        if self._down is self._up:
            self._up.know(near, capacity)
        else:
            self._up.know(Near({}, near.after_us, ()), capacity)
            self._down.know(Near(near.before_us, {}, ()), capacity)

    def hear_advert(self, peer: PeerId, advert: Advert, now: float) -> None:
        """A peer of the next stage has published something new."""
        self._at(now)
        side = self._up.side
        if peer in side.near.after_us:
            side.offers[peer], side.prices[peer] = advert.offers, advert.prices
            self._up.requests.wish()

    def hear(self, sender: PeerId, message: NegotiationMessage, now: float) -> None:
        self._at(now)
        down = isinstance(message, DOWNWARD)
        if isinstance(message, (CheckFlows, UnknownFlows)):
            down = message.upstream == isinstance(message, CheckFlows)
        (self._down if down else self._up).hear(sender, message)

    def gone(self, peer: PeerId, now: float) -> None:
        """A peer is lost."""
        self._at(now)
        for part in self.parts:
            part.gone(peer)

    def tick(self, now: float) -> None:
        self._at(now)
        for part in self.parts:
            part.tick()

    def _at(self, now: float) -> None:
        for part in self.parts:
            part.side.now = now

    # ---- what it says

    def take_out(self) -> Said:
        """All that is to be sent since the last call, in order."""
        said = [item for part in self.parts for item in part.side.out]
        for part in self.parts:
            part.side.out.clear()
        self.messages += len(said)
        return said

    def advert(self) -> Advert:
        """What should be published."""
        down, up = self._down.side, self._up.side
        return Advert(offers_of(down), prices_of(up) if not up.slots.is_source else {})


def _steady(before: Mapping[PeerId, int], now: Mapping[PeerId, int]) -> dict[PeerId, int]:
    """The costs as they were, where they have hardly changed."""
    same = {p: c for p, c in before.items() if p in now and abs(now[p] - c) <= COST_NOISE * c}
    return {p: same.get(p, c) for p, c in sorted(now.items())}


__all__ = ["Advert", "Near", "NegotiationConfig", "Negotiator"]
