"""Which stage does a newcomer take? The one where one more peer raises the swarm's throughput most.

A swarm is as fast as its slowest stage, so the answer is the stage with the least compute rate, sum over its peers of
1 / (forward + backward seconds). A peer that is not measured yet counts with the median of the measured ones (all peers alike
when none is). Ties go to the stage with fewer peers, then to one drawn by the newcomer's id, so that several newcomers who
look at the same records do not all choose the same stage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from statistics import median

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.records import PeerState


@dataclass(frozen=True, slots=True)
class StageChoice:
    stage: Stage
    reason: str


def choose_stage(view: NetworkView, me: PeerId) -> StageChoice:
    """Counts peers that are about to serve as well: a stage whose only other peer is still joining is not empty."""
    coming = [r for p, r in view.records.items() if p != me and r.state is not PeerState.DRAINING]
    seconds = [r.forward_s + r.backward_s for r in coming if r.stage > 0 and r.forward and r.backward]
    usual = median(seconds) if seconds else 1.0
    rates: dict[Stage, float] = {}
    counts: dict[Stage, int] = {}
    for number in range(1, view.stages + 1):
        stage = Stage(number)
        peers = [r for r in coming if r.stage == stage]
        counts[stage] = len(peers)
        rates[stage] = sum(1.0 / max(1e-6, (r.forward_s + r.backward_s) or usual) for r in peers)

    def key(stage: Stage) -> tuple[float, int, str]:
        return round(rates[stage], 6), counts[stage], hashlib.sha256(f"{me}/{stage}".encode()).hexdigest()

    best = min(rates, key=key)
    return StageChoice(best, f"{counts[best]} peers with {rates[best]:.2f} microbatches/s, least of {view.stages} stages")
