"""How one side asks for paths: a peer with room asks for the cheapest one that a peer of the next stage offers.

Paths grow from the sinks back, since what a side gets it offers to the stage before. Every exchange of messages concerns one
hop, and each end decides about its own slots only, so no message order can make a peer exceed its capacity.
"""

from __future__ import annotations

from math import exp
from random import Random

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.idle_slots import IdleSlots
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.wire.negotiation_messages import NONE_QUOTED, CancelFlow, FlowAnswer, HopEnd, RequestFlow

MOST_GAP_S = 64.0
"""Between two requests to peers that offer nothing: they double up to this."""


class PathRequests:
    """Makes the requests of one side, one at a time. `idle` tells which paths are wanted that no own flow needs."""

    def __init__(self, side: Side, idle: IdleSlots) -> None:
        self.side = side
        self._idle = idle
        self._gap_s = side.config.tick_s
        self._wake_after = 0.0

    @property
    def is_hopeful(self) -> bool:
        """A data peer that wants more flows, and has not yet asked in vain for long."""
        side = self.side
        wants = side.slots.is_source and side.slots.room > 0 and bool(side.near.after_us)
        return wants and (self._gap_s < MOST_GAP_S or bool(self._choices(side.me)))

    def wish(self) -> None:
        """The next request, if there is something to ask for."""
        side, slots = self.side, self.side.slots
        if side.pending is not None or slots.is_sink:
            return
        for slot in slots.pathless():
            if slot.sink in side.near.after_us:
                self._request(slot, 0, slot.sink, slot.sink, takes_over=True)
                return
            if self._ask(slot, slot.sink):
                return
        if slots.room <= 0:
            return
        if slots.is_source:
            self._ask_as_source()
        elif self._idle.may_be_filled:
            if any(self._ask(None, sink) for sink in self._idle.wanted):
                return
            choice = min((c for sink in self._sinks() for c in self._choices(sink)), default=None)
            if choice is not None:
                self._request(None, *choice)

    def _ask_as_source(self) -> None:
        if self._choices(self.side.me) or not self.take_over(0.0):
            self._ask(None, self.side.me)

    def take_over(self, temperature_us: float) -> bool:
        """Ask for a flow of another data peer: if all gain, or now and then while it is hot, as with all moves."""
        side, slots = self.side, self.side.slots
        if side.pending is not None or not slots.is_source or slots.room <= 0:
            return False
        after = side.near.after_us
        prices = [(after[q] + p[side.me], q, p[side.me]) for q, p in side.prices.items() if side.me in p and q in after]
        more_us, peer, price_us = min(prices, default=(0, side.me, 0))
        if peer == side.me or (more_us >= 0 and not _dares(more_us, temperature_us, side.random)):
            return False
        self._request(None, price_us, peer, side.me, takes_over=True)
        return True

    def _ask(self, slot: Slot | None, sink: PeerId) -> bool:
        """For the cheapest path on offer; without any, wake somebody now and then."""
        side = self.side
        choice = min(self._choices(sink), default=None)
        if choice is not None:
            self._request(slot, *choice)
            return True
        able = sorted(side.near.after_us)
        if side.now < self._wake_after or not able or sink in side.near.after_us:
            return False
        self._gap_s = min(2 * self._gap_s, MOST_GAP_S)
        self._wake_after = side.now + self._gap_s
        self._request(slot, NONE_QUOTED, side.random.choice(able), sink)
        return True

    def _choices(self, sink: PeerId) -> list[tuple[int, PeerId, PeerId]]:
        """(cost from here, next peer, sink) of every offer."""
        after = self.side.near.after_us
        return [(after[q] + o[sink], q, sink) for q, o in self.side.offers.items() if sink in o and q in after]

    def _sinks(self) -> list[PeerId]:
        return sorted({PeerId(sink) for offers in self.side.offers.values() for sink in offers})

    def _request(self, slot: Slot | None, cost_us: int, peer: PeerId, sink: PeerId, takes_over: bool = False) -> None:
        """`cost_us` is from here, a price or NONE_QUOTED. Without a slot one is reserved."""
        side = self.side
        if slot is None:
            slot = Slot(sink, locked=True, idle_since=side.now)
            side.slots.add(slot)
        quoted = cost_us if takes_over or cost_us == NONE_QUOTED else cost_us - side.near.after_us[peer]
        link = side.new_link()
        side.lock(peer, link, [slot], link)
        assert side.pending is not None
        side.pending.quoted_us, side.pending.takes_over = quoted, takes_over
        side.say(peer, RequestFlow(link, sink, quoted, takes_over))

    def switch(self) -> bool:
        """Ask for a cheaper path for a flow that has one (ours: the prototype changes paths by Change and Redirect only)."""
        side = self.side
        if side.pending is not None or side.slots.is_sink:
            return False
        best: tuple[int, int, Slot, tuple[int, PeerId, PeerId]] | None = None
        for n, slot in enumerate(side.slots.complete()):
            choice = min(self._choices(slot.sink), default=None)
            if choice is not None and choice[0] < side.cost_us(slot):
                saving = side.cost_us(slot) - choice[0]
                if best is None or (-saving, n) < best[:2]:
                    best = (-saving, n, slot, choice)
        if best is None:
            return False
        self._request(best[2], *best[3])
        return True

    def answered(self, sender: PeerId, message: FlowAnswer) -> None:
        """Mine, or one that nobody waits for any more."""
        side, pending = self.side, self.side.pending
        side.offers[sender], side.prices[sender] = message.offers, message.prices
        if pending is None or pending.key != message.link:
            if message.accepted and message.link not in side.slots.by_out:
                side.say(sender, CancelFlow(message.link, 1))
            return
        slot = pending.slots[0]
        if message.accepted and sender in side.near.after_us and message.sink == slot.sink:
            old = slot.outflow
            side.slots.set_out(slot, HopEnd(message.link, sender), side.now)
            slot.beyond_us, slot.others = message.cost_us, message.others
            self._gap_s = side.config.tick_s
            if old is not None:
                side.moves += 1
                side.say(old.peer, CancelFlow(old.link, old.said + 1))
        elif message.accepted:
            side.say(sender, CancelFlow(message.link, 1))
        else:
            told = message.prices if pending.takes_over else message.offers
            if told.get(message.sink, pending.quoted_us + 1) <= pending.quoted_us:
                side.offers[sender] = side.prices[sender] = {}  # it does not know me yet: ask when it says something new


def _dares(more_us: int, temperature_us: float, random: Random) -> bool:
    return temperature_us > 0 and random.random() < exp(-more_us / temperature_us)
