"""Which microbatch that waits at one stage peer would be done sooner at another one of its stage? As one sender can tell.

Plans are made for those who are there when they are made, and what was handed on is out of their hands. So when a stage peer
comes while others of its stage have a queue, whoever filled that queue, and still has its outputs, may hand on the last of them
anew (`transfer/rebinding`). The forecast is of the whole queue: a stage peer is done with what waits there after as many turns,
and a turn takes what limits it, its device or its line, over which an activation and a gradient come and as much leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView

WORTH_MOVING = 0.2
"""Of the time until the queue is done: less may be noise, and what was sent already was sent in vain."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits at one stage peer, of one sender: seconds until a microbatch sent now would be there, and of each turn."""

    waiting: int
    transfer_s: float
    turn_s: float


def turn_s(view: NetworkView, peer: PeerId) -> float:
    """Seconds that a microbatch takes of what limits a stage peer."""
    record = view.records[peer]
    line_s = 0.0
    if record.line_bytes_per_s > 0:
        line_s = view.hops.over_line(record.stage) / record.line_bytes_per_s
    return max(record.forward_s + record.backward_s, line_s)


def transfer_s(view: NetworkView, sender: PeerId, receiver: PeerId) -> float:
    """Seconds of an activation on an idle link."""
    link = view.link(sender, receiver)
    return link.latency_s + view.hops.forth(view.records[receiver].stage - 1) / link.bandwidth_bytes_per_s


def moved(queues: Mapping[PeerId, Queue], newcomers: Mapping[PeerId, Collection[PeerId]]) -> tuple[PeerId, PeerId] | None:
    """From which queue to which peer the last microbatch should go; None when too little is gained. Ties to the lowest ids.

    `newcomers` of each queue are the peers to which its last may go. The first of a queue stays: it is, or will soon be,
    computed.
    """
    found: list[tuple[float, PeerId, PeerId]] = []
    for peer, others in newcomers.items():
        queue = queues[peer]
        now_s = queue.waiting * queue.turn_s
        for other in others if queue.waiting > 1 else ():
            then_s = queues[other].transfer_s + (queues[other].waiting + 1) * queues[other].turn_s
            if other != peer and then_s < (1 - WORTH_MOVING) * now_s:
                found.append((then_s - now_s, peer, other))
    return min(found)[1:] if found else None
