"""SWARM's adaptive rebalancing (arXiv 2301.11913, section 3.2): which peer changes its stage?

Every T seconds all peers publish their queue lengths and read the others'. The load of a stage is the sum over its peers. The
least loaded peer of the least loaded stage moves to the most loaded stage and downloads its state there. All peers compute
this from the same figures, so they agree on who moves; nobody else does anything.

Decided here where the paper is silent or the swarm would stop: ties go to the lower stage and the lower peer id; stages with
one peer are passed over, because a stage must never be emptied by a move; no move when no stage is loaded more than another.
A peer's queue length is the mean, over the T seconds, of the microbatches that wait for its device or are on it: not of all
that it holds, since most of those wait for slower stages below, and not at one moment, since all queues are empty at the end
of an iteration.
Which stage a newcomer takes is another question: see `rebalancing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gwtf_p2p.protocol.core.lifecycle import Phase
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView

IN_QUEUE = frozenset({Phase.QUEUED_FORWARD, Phase.FORWARD, Phase.QUEUED_BACKWARD, Phase.BACKWARD})
"""What counts in a peer's queue length."""


@dataclass(frozen=True, slots=True)
class Move:
    """`peer` leaves its stage for another."""

    peer: PeerId
    from_stage: Stage
    to_stage: Stage
    reason: str


@dataclass(frozen=True, slots=True)
class NoMove:
    reason: str


def swarm_move(view: NetworkView, queue_lengths: Mapping[PeerId, float]) -> Move | NoMove:
    """The one move that the rule names. A peer without a figure has only just come: its queue counts as empty."""
    lengths = {peer: queue_lengths.get(peer, 0.0) for peer in view.records}
    groups = {Stage(k): view.peers_of_stage(Stage(k)) for k in range(1, view.stages + 1)}
    loads = {stage: sum(lengths[peer] for peer in peers) for stage, peers in groups.items()}
    able = [stage for stage, peers in groups.items() if len(peers) > 1]
    if not able:
        return NoMove("every stage has one peer at most")
    source = min(able, key=lambda stage: (loads[stage], stage))
    target = min(loads, key=lambda stage: (-loads[stage], stage))
    if loads[target] <= loads[source]:
        return NoMove(f"all stages hold {loads[target]:.1f}")
    peer = min(groups[source], key=lambda p: (lengths[p], p))
    here = f"{lengths[peer]:.1f} of {loads[source]:.1f} in stage {source}"
    return Move(peer, source, target, f"{peer} holds {here}, stage {target} holds {loads[target]:.1f}")
