"""Which stage does a newcomer take? The one where one more peer raises the swarm's throughput most.

A swarm is as fast as its slowest stage, so the answer is the stage with the largest pace (seconds per microbatch, from compute
and from slots: see `moving`). Ties go to the stage with fewer peers, then to one drawn by the newcomer's id, so that several
newcomers who look at the same records do not all choose the same stage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.membership.rebalancing import Paces
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState


@dataclass(frozen=True, slots=True)
class StageChoice:
    stage: Stage
    reason: str


def choose_stage(view: NetworkView, me: PeerId) -> StageChoice:
    """Counts peers that are about to serve as well: a stage whose only other peer is still joining is not empty."""
    coming = [r for p, r in view.records.items() if p != me and r.state is not PeerState.DRAINING]
    paces = Paces(view.stages, coming)

    def key(stage: Stage) -> tuple[float, int, str]:
        drawn = hashlib.sha256(f"{me}/{stage}".encode()).hexdigest()
        return -round(paces.pace_s(stage), 6), len(paces.participants[stage]), drawn

    best = min(paces.participants, key=key)
    count, pace_s = len(paces.participants[best]), paces.pace_s(best)
    if not count:
        return StageChoice(best, "no peer serves it yet")
    return StageChoice(best, f"the slowest of {view.stages} stages, {pace_s:.3f} s per microbatch with {count} peers")
