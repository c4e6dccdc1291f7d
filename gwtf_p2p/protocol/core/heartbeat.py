"""A peer that something is wanted from is asked after a second of silence, whatever the deadlines say.

Deadlines come from measured times, and a microbatch that is on its way through many stages may take long; before anything is
measured they are guesses. A frozen peer keeps its connections open and so betrays itself by nothing but its silence. Asking
costs a small message per silent neighbour and second, and a peer that is only slow answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Phase, Sending
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import PeerId

WAITING = (Sending.PUSHING, Sending.AWAITING)


class Heartbeat:
    """Of one peer; beats while it waits for anybody."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._beating = False

    def keep_up(self) -> None:
        """To be called whenever there may be something to wait for."""
        if not self._beating and self.ctx.liveness.heartbeat_s > 0:
            self._beating = True
            self.ctx.start_timer(Timer.HEARTBEAT, "", self.ctx.liveness.heartbeat_s)

    def beat(self, others: Iterable[PeerId]) -> None:
        """The timer fired: ask who has been silent, of those that hold work for this peer and of `others`."""
        ctx = self.ctx
        self._beating = False
        wanted = self._wanted() | set(others) - {ctx.me}
        for peer in sorted(wanted):
            silent_s = ctx.liveness.silent_s(peer, ctx.now)
            if silent_s >= ctx.liveness.heartbeat_s:
                ctx.suspect(peer, f"silent for {silent_s:.1f} s")
        if wanted:
            self.keep_up()

    def _wanted(self) -> set[PeerId]:
        """Who has to compute for this peer, or to take what it has computed."""
        wanted = set()
        for held in self.ctx.held.values():
            if held.phase is Phase.DONE and held.sending not in WAITING:
                continue
            if held.sending in WAITING and held.successor is not None:
                wanted.add(held.successor)
            wanted.add(held.predecessor)
        return wanted - {self.ctx.me}
