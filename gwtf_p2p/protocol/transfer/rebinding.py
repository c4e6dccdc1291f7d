"""What waits at one peer of the next stage goes to one that has come since, if it is done sooner there (`late_binding`).

It is handed on as after a loss (`repair`): in a higher attempt, while the peer that had it is told that it is superseded and
forgets it. Has that peer handed it on meanwhile, the peer after it recognises the microbatch, and one stage is computed twice
for nothing: a waste of time, not an error. Only routers that plan do this: others choose when an output is ready anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.transfer.repair import Repairs
from gwtf_p2p.protocol.transfer.send_activation import WAITING, SendActivation
from gwtf_p2p.protocol.view.late_binding import Queue, moved, transfer_s, turn_s


class Rebinding:
    """Of one peer. `came_at` is since when each peer of the next stage can be had, as this peer has seen it."""

    def __init__(self, context: Context, send_activation: SendActivation, repairs: Repairs) -> None:
        self.ctx, self.send_activation, self.repairs = context, send_activation, repairs
        self.came_at: dict[PeerId, float] = {}
        self._there: tuple[tuple[PeerId, ...], frozenset[PeerId], frozenset[PeerId]] = ((), frozenset(), frozenset())

    def look(self) -> None:
        """The records have changed, or it has become known who is there."""
        ctx, view = self.ctx, self.ctx.view
        if view is None or self.send_activation.is_last or ctx.planner is None:
            return
        there = view.peers_of_stage(self.send_activation.target), ctx.liveness.excluded, ctx.liveness.back
        if there != self._there:
            self._there, (peers, excluded, back) = there, there
            able = [peer for peer in peers if peer not in excluded and peer not in back]
            self.came_at = {peer: self.came_at.get(peer, ctx.now) for peer in able}
        waiting = self._waiting()
        newcomers = self._newcomers(waiting)
        if not newcomers:
            return
        concerned = sorted({*waiting, *self.came_at})  # who is new to a queue goes by what is its last, which changes
        queues = {p: Queue(len(waiting.get(p, ())), transfer_s(view, ctx.me, p), turn_s(view, p)) for p in concerned}
        while (move := moved(queues, newcomers)) is not None:
            held = waiting[move[0]].pop()
            ctx.report("rebound", microbatch=held.name, former=move[0], to=move[1])
            self.repairs.hand_over(held, *move)
            for peer, more in zip(move, (-1, 1), strict=True):
                queues[peer] = replace(queues[peer], waiting=queues[peer].waiting + more)
            newcomers = self._newcomers(waiting)

    def _newcomers(self, waiting: Mapping[PeerId, Sequence[Held]]) -> dict[PeerId, list[PeerId]]:
        """Of each queue: who has come since the last of it was handed on."""
        newest = max(self.came_at.values(), default=0.0) if waiting else 0.0
        return {
            peer: [other for other, came_at in self.came_at.items() if came_at > queue[-1].waits_since]
            for peer, queue in waiting.items()
            if queue and newest > queue[-1].waits_since
        }

    def _waiting(self) -> dict[PeerId, list[Held]]:
        """What each peer of the next stage has not handed on yet, the last that came to it at the end."""
        found: dict[PeerId, list[Held]] = {}
        for held in self.ctx.in_order():
            if held.sending in WAITING and held.beyond is None and held.successor in self.came_at:
                found.setdefault(held.successor, []).append(held)
        for queue in found.values():
            queue.sort(key=lambda held: (held.waits_since, held.id))
        return found
