"""Is there room for one more microbatch? Who is refused for lack of it is told when there is some.

Two things are limited: how many microbatches are held at once, and the memory for what is kept until the iteration closes. With
queues, nothing is refused for the first reason: then the capacity limits how many activations are kept.
"""

from __future__ import annotations

from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import CapacityAvailable

MOST_REFUSED = 64
"""Peers that are told when there is room again. Others ask again in their own time."""


class Room:
    """Of one stage peer; `capacity` and `queues` as in `StagePeerConfig`."""

    def __init__(self, context: Context, participant: Participant, capacity: int, queues: bool) -> None:
        self.ctx, self.participant = context, participant
        self.capacity, self.queues = capacity, queues
        self._said_full = -1
        self._refused: dict[PeerId, int] = {}

    @property
    def has_refused(self) -> bool:
        """Somebody waits to be told that there is room."""
        return bool(self._refused)

    @property
    def keeps_most(self) -> bool:
        """No more activations may be kept."""
        return bool(self.capacity) and self.ctx.holdings.activations >= self.capacity

    def refuse(self, peer: PeerId, iteration: int) -> None:
        """It is told when there is room again for what it has of this iteration."""
        if len(self._refused) < MOST_REFUSED:
            self._refused[peer] = min(iteration, self._refused.get(peer, iteration))

    def give_way(self) -> None:
        """The activations that came last are dropped, for one forward that is to be computed again."""
        last = self.ctx.holdings.last_kept()
        if last is not None:
            self.ctx.drop_activations(last)

    def why_full(self, iteration: int = -1) -> str:
        """Empty when there is room for a microbatch of this iteration. Those of iterations that are closed later, which need
        the memory for longer, get half of it: the one that is being closed must not wait for them."""
        ctx, version = self.ctx, self.participant.version
        if self.capacity and not self.queues and ctx.occupancy >= self.capacity:
            return f"{ctx.occupancy} of {self.capacity} held"
        if ctx.life.ahead and ctx.memory_limit_bytes > 0 and iteration > version:
            later = sum(microbatch.iteration > version for microbatch in ctx.held)
            if 2 * (later + 1) * ctx.done_bytes > ctx.memory_limit_bytes:
                return f"memory: {later} kept of the iterations to come"
        if not ctx.memory_is_full:
            return ""
        if not ctx.occupancy and self._said_full != self.participant.version:
            # Nothing that is under way will free memory before the iteration closes.
            self._said_full = self.participant.version
            ctx.report("memory_full", iteration=self.participant.version, kept=len(ctx.held), limit=ctx.memory_limit_bytes)
        return f"memory: {len(ctx.held)} kept until the iteration closes"

    def tell_refused(self) -> None:
        """There is room: all who were refused hear of it, the first one first, where there is room for theirs. Who comes too
        late is refused and told again."""
        ctx = self.ctx
        limited = self.capacity and not self.queues
        slots = self.capacity - ctx.occupancy if limited else len(self._refused)
        told = [peer for peer, iteration in self._refused.items() if not self.why_full(iteration)]
        for peer in told:
            del self._refused[peer]
            if not ctx.liveness.is_lost(peer):
                ctx.emit(Send(peer, CapacityAvailable(slots)))
