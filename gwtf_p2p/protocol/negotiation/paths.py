"""Flows and their paths: how one side asks for them, gives them away, keeps their costs true, and loses them.

Paths grow from the sinks back: a stage peer with room asks for the cheapest path that a peer of the next stage offers, and
offers what it gets to the stage before. Every exchange of messages concerns one hop, and each end decides about its own slots
only, so no message order can make a peer exceed its capacity. Whatever two ends disagree about is settled by CHECK_FLOW: a hop
that the other end does not know is dropped.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp
from random import Random

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.offers import best_to_take, cheapest_spare, offers_of, prices_of
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.wire.negotiation_messages import (
    NONE_QUOTED,
    CancelFlow,
    CheckFlows,
    FlowAnswer,
    HopEnd,
    PathIs,
    PathLost,
    RequestFlow,
    UnknownFlows,
    UpstreamIs,
)

YOUNG_S = 2.0
"""A hop whose ends have just changed is not checked: the announcement may still be under way."""

MOST_GAP_S = 64.0
"""Between two requests to peers that offer nothing: they double up to this."""


class Paths:
    """Of one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._spare_after = 0.0
        self._patience_s = side.config.patience_s
        self._gap_s = side.config.tick_s
        self._wake_after = 0.0
        self._wanted: dict[PeerId, float] = {}

    @property
    def is_hopeful(self) -> bool:
        """A data peer that wants more flows, and has not yet asked in vain for long."""
        side = self.side
        wants = side.slots.is_source and side.slots.room > 0 and bool(side.near.after_us)
        return wants and (self._gap_s < MOST_GAP_S or bool(self._choices(side.me)))

    # ---- giving

    def requested(self, sender: PeerId, message: RequestFlow) -> None:
        """Accepted if the quote is no lower than the true cost, and a spare path exists."""
        side = self.side
        held = side.slots.by_in.get(message.link)
        if held is not None:
            accepted = held.inflow is not None and held.inflow.peer == sender
            self._answer(sender, message.link, held if accepted else None, message.sink)
            return
        slot = self._give(message) if sender in side.near.before_us else None
        if slot is not None:
            takes_over = message.takes_over and not side.slots.is_sink
            told = (message.sink, side.cost_us(slot), side.others_us(slot))
            if takes_over:
                told = (message.sink, side.others_us(slot)[message.sink], {})
                side.push_back(slot)
            side.slots.set_in(slot, HopEnd(message.link, sender), side.now)
            slot.told = told
            self._patience_s = side.config.patience_s
            if takes_over:
                self.relabel(slot, message.sink)
        self._answer(sender, message.link, slot, message.sink)

    def _give(self, message: RequestFlow) -> Slot | None:
        side, slots = self.side, self.side.slots
        if slots.is_sink:
            wanted = slots.room > 0 or message.takes_over
            return slots.add(Slot(side.me), beyond=True) if message.sink == side.me and wanted else None
        if message.takes_over:
            found = best_to_take(side, message.sink)
            return found[0] if found is not None and found[1] <= message.quoted_us else None
        slot = cheapest_spare(side, message.sink)
        if slot is None and message.quoted_us == NONE_QUOTED:
            self._woken(message.sink)
        return slot if slot is not None and side.cost_us(slot) <= message.quoted_us else None

    def _answer(self, to: PeerId, link: str, slot: Slot | None, sink: PeerId) -> None:
        side = self.side
        told = slot.told if slot is not None else None
        cost_us, others = told[1:] if told is not None else (0, {})
        side.say(to, FlowAnswer(link, slot is not None, sink, cost_us, others, offers_of(side), prices_of(side)))

    def _woken(self, sink: PeerId) -> None:
        """Somebody before me needs a path to this sink: look for one, and make room for it."""
        side = self.side
        self._wanted[sink] = side.now
        self._spare_after = side.now
        other = next((s for s in side.slots.spare() if s.sink not in self._wanted), None)
        if side.slots.room <= 0 and other is not None:
            side.cancel_out(other)

    def relabel(self, slot: Slot, sink: PeerId) -> None:
        """The path is to end at another data peer from now on."""
        side = self.side
        ends_here = slot.outflow is not None and slot.outflow.peer == slot.sink
        if slot.outflow is not None and not ends_here:
            after_us = side.near.after_us[slot.outflow.peer]
            slot.beyond_us = side.others_us(slot).get(sink, slot.beyond_us + after_us) - after_us
            slot.others = {}
            slot.sink = sink
            side.announce_down(slot)
            return
        slot.sink = sink
        side.cancel_out(slot)

    # ---- asking

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
        elif side.now >= self._spare_after:
            wanted = [sink for sink, at in self._wanted.items() if side.now - at <= side.config.patience_s]
            if any(self._ask(None, sink) for sink in sorted(wanted)):
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

    # ---- the ends of a hop

    def upstream_is(self, message: UpstreamIs) -> None:
        """The end before me has changed hands, or the flow has."""
        side = self.side
        slot = side.slots.by_in.get(message.link)
        if slot is None or slot.inflow is None:
            side.say(message.holder, PathLost(message.link, message.version + 1))
        elif message.version > slot.inflow.heard:
            if side.slots.is_sink and message.sink != side.me:
                side.push_back(slot)
                return
            if message.holder != slot.inflow.peer:
                slot.changed_at = side.now
            slot.inflow = replace(slot.inflow, peer=message.holder, heard=message.version)
            if message.sink != slot.sink:
                self.relabel(slot, message.sink)
            side.announce_up(slot)

    def path_is(self, message: PathIs) -> None:
        """The end after me has changed hands, or its cost."""
        side = self.side
        slot = side.slots.by_out.get(message.link)
        if slot is None or slot.outflow is None:
            side.say(message.holder, CancelFlow(message.link, message.version + 1))
            return
        if message.version <= slot.outflow.heard:
            return
        if message.holder not in side.near.after_us:
            side.cancel_out(slot)
            return
        if message.holder != slot.outflow.peer:
            slot.changed_at = side.now
        slot.outflow = replace(slot.outflow, peer=message.holder, heard=message.version)
        if message.sink == slot.sink or not side.slots.is_used(slot):
            slot.sink, slot.beyond_us, slot.others = message.sink, message.cost_us, message.others
        else:
            side.announce_down(slot)
        side.refresh(slot)

    def cancelled(self, message: CancelFlow) -> None:
        side = self.side
        slot = side.slots.by_in.get(message.link)
        if slot is not None and slot.inflow is not None and message.version > slot.inflow.heard:
            side.slots.set_in(slot, None, side.now)

    def path_lost(self, message: PathLost) -> None:
        side = self.side
        slot = side.slots.by_out.get(message.link)
        if slot is not None and slot.outflow is not None and message.version > slot.outflow.heard:
            side.slots.set_out(slot, None, side.now)

    # ---- CHECK_FLOW

    def check(self) -> None:
        """Ask every neighbour about the hops that it shares with me."""
        for upstream in (True, False):
            by_peer: dict[PeerId, list[str]] = {}
            for slot in self.side.slots:
                end = slot.outflow if upstream else slot.inflow
                if end is not None and not slot.locked and self.side.now - slot.changed_at > YOUNG_S:
                    by_peer.setdefault(end.peer, []).append(end.link)
            for peer, links in sorted(by_peer.items()):
                self.side.say(peer, CheckFlows(tuple(links), upstream))

    def checked(self, sender: PeerId, message: CheckFlows) -> None:
        side = self.side
        pending = side.pending
        known = (side.slots.by_in if message.upstream else side.slots.by_out).get
        given = side.given_down if message.upstream else side.given_up
        unknown = []
        for link in message.links:
            slot = known(link)
            end = None if slot is None else slot.inflow if message.upstream else slot.outflow
            under_way = link in given or (pending is not None and link in pending.links)
            if not under_way and (end is None or end.peer != sender):
                unknown.append(link)
        if unknown:
            side.say(sender, UnknownFlows(tuple(unknown), message.upstream))

    def unknown(self, sender: PeerId, message: UnknownFlows) -> None:
        """Drop them, unless their ends have changed hands since they were checked."""
        side = self.side
        for link in message.links:
            slot = (side.slots.by_out if message.upstream else side.slots.by_in).get(link)
            end = None if slot is None else slot.outflow if message.upstream else slot.inflow
            if slot is None or end is None or end.peer != sender or slot.locked or side.now - slot.changed_at < YOUNG_S:
                continue
            if message.upstream:
                side.slots.set_out(slot, None, side.now)
            else:
                side.slots.set_in(slot, None, side.now)

    # ---- loss and patience

    def gone(self, peer: PeerId) -> None:
        """A peer is lost, or may not be routed to any more."""
        side = self.side
        side.offers.pop(peer, None)
        side.prices.pop(peer, None)
        for slot in side.slots:
            if slot.inflow is not None and slot.inflow.peer == peer:
                side.slots.set_in(slot, None, side.now)
            if slot.outflow is not None and slot.outflow.peer == peer:
                side.slots.set_out(slot, None, side.now)

    def lose_patience(self) -> None:
        """Push back what has found no path, cancel what nobody wants."""
        side, patience_s = self.side, self._patience_s
        for slot in side.slots.pathless():
            if side.now - slot.idle_since > side.config.patience_s:
                side.push_back(slot)
        for slot in [] if side.slots.is_sink else side.slots.spare():
            if side.now - slot.idle_since > patience_s * (1 - side.random.random() / 6):
                side.cancel_out(slot)
                self._patience_s = min(2 * patience_s, 8 * side.config.patience_s)
                self._spare_after = side.now + self._patience_s

    def trim(self) -> None:
        """The capacity has shrunk: first what nobody uses goes, then the dearest."""
        side, slots = self.side, self.side.slots
        for slot in sorted(slots, key=lambda s: (slots.is_used(s), -side.cost_us(s))):
            if slots.room >= 0:
                return
            if not slot.locked:
                side.push_back(slot)
                side.cancel_out(slot)


def _dares(more_us: int, temperature_us: float, random: Random) -> bool:
    return temperature_us > 0 and random.random() < exp(-more_us / temperature_us)
