"""How one side gives paths away: to a peer of the stage before that asks for one.

A spare path goes to whoever quotes no less than its true cost; a data peer may take over another's flow at its price.
"""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.idle_slots import IdleSlots
from gwtf_p2p.protocol.negotiation.offers import best_to_take, cheapest_spare, offers_of, prices_of
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.negotiation.slots import Slot
from gwtf_p2p.protocol.wire.negotiation_messages import NONE_QUOTED, FlowAnswer, HopEnd, RequestFlow


class PathGrants:
    """Answers the requests for paths of one side. `idle`: where a path that it cannot give yet is noted as wanted."""

    def __init__(self, side: Side, idle: IdleSlots) -> None:
        self.side = side
        self._idle = idle

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
            self._idle.taken()
            if takes_over:
                side.relabel(slot, message.sink)
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
            self._idle.want(message.sink)
        return slot if slot is not None and side.cost_us(slot) <= message.quoted_us else None

    def _answer(self, to: PeerId, link: str, slot: Slot | None, sink: PeerId) -> None:
        side = self.side
        told = slot.told if slot is not None else None
        cost_us, others = told[1:] if told is not None else (0, {})
        side.say(to, FlowAnswer(link, slot is not None, sink, cost_us, others, offers_of(side), prices_of(side)))
