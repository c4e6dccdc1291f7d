"""The microbatches that are on no way yet: those that look for a route, and those that somebody had no room for.

One that was refused is remembered until somebody takes it: then it is measured how long that took, and the peer that says that
it has room (`CapacityAvailable`) is offered it.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held, Sending
from gwtf_p2p.protocol.ids import MicrobatchId


class Unrouted:
    """Of one peer, towards the next stage."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._routing: set[MicrobatchId] = set()
        self._refused: dict[MicrobatchId, float] = {}

    def look(self, held: Held) -> None:
        """It looks for a route from now on."""
        held.to_sending(Sending.ROUTING, self.ctx.now)
        self._routing.add(held.id)

    def routed(self, held: Held) -> None:
        """It has one, or needs none any more."""
        self._routing.discard(held.id)

    def looking(self) -> list[Held]:
        """What looks for a route, sorted by id."""
        found = []
        for microbatch in sorted(self._routing):
            held = self.ctx.held.get(microbatch)
            if held is None or held.sending is not Sending.ROUTING:
                self._routing.discard(microbatch)
            else:
                found.append(held)
        return found

    def refuse(self, held: Held) -> None:
        """Somebody had no room for it."""
        self._refused.setdefault(held.id, self.ctx.now)

    def is_refused(self, held: Held) -> bool:
        """Somebody had no room for it, and nobody has taken it since."""
        return held.id in self._refused

    def refused(self) -> list[Held]:
        """What may still be given to whoever has room, sorted by id."""
        found = []
        for microbatch in sorted(self._refused):
            held = self.ctx.held.get(microbatch)
            if held is None or held.sending not in (Sending.ROUTING, Sending.PUSHING):
                del self._refused[microbatch]
            else:
                found.append(held)
        return found

    def taken(self, held: Held) -> None:
        """Somebody has it."""
        refused_at = self._refused.pop(held.id, None)
        if refused_at is not None:
            self.ctx.timings.observe(("room",), self.ctx.now - refused_at)
