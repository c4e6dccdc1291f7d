"""The two ends of a hop: each hears who has become the other one, what the path costs now, and that the hop is gone."""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.wire.negotiation_messages import CancelFlow, PathIs, PathLost, UpstreamIs


class HopEnds:
    """Keeps what one side knows of the other ends of its hops."""

    def __init__(self, side: Side) -> None:
        self.side = side

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
            if message.holder in side.gone:
                side.push_back(slot)
                return
            if message.sink != slot.sink:
                side.relabel(slot, message.sink)
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
        """The end before me has given up the path: the slot is spare again."""
        side = self.side
        slot = side.slots.by_in.get(message.link)
        if slot is not None and slot.inflow is not None and message.version > slot.inflow.heard:
            side.slots.set_in(slot, None, side.now)

    def path_lost(self, message: PathLost) -> None:
        """The end after me has given up the flow: the slot needs another path."""
        side = self.side
        slot = side.slots.by_out.get(message.link)
        if slot is not None and slot.outflow is not None and message.version > slot.outflow.heard:
            side.slots.set_out(slot, None, side.now)

    def gone(self, peer: PeerId) -> None:
        """A peer is lost, or may not be routed to any more."""
        side = self.side
        side.offers.pop(peer, None)
        side.prices.pop(peer, None)
        side.gone[peer] = side.now
        for slot in side.slots:
            if slot.inflow is not None and slot.inflow.peer == peer:
                side.slots.set_in(slot, None, side.now)
            if slot.outflow is not None and slot.outflow.peer == peer:
                side.slots.set_out(slot, None, side.now)
