"""CHECK_FLOW: whatever two ends of a hop disagree about is settled by dropping what the other end does not know."""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.negotiation.side import Side
from gwtf_p2p.protocol.wire.negotiation_messages import CheckFlows, UnknownFlows

YOUNG_S = 2.0
"""A hop whose ends have just changed is not checked: the announcement may still be under way."""


class FlowChecks:
    """Asks the neighbours of one side about the hops that it shares with them, and answers their questions."""

    def __init__(self, side: Side) -> None:
        self.side = side

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
        """A neighbour asks: name those of its hops that this side does not know, or knows with another."""
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
