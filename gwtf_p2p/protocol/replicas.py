"""Who keeps copies of whose checkpoints? Peers of the neighbouring stages, so that the loss of one machine loses no stage.

The stages lie in a ring (stage 0, the data peers', follows the last one), so every stage has neighbours. Of the peers there,
those with the highest hash of (stage, peer) keep the copies: all peers with equal views agree, without talking, and a peer
that comes or goes changes little (rendezvous hashing).
"""

from __future__ import annotations

import hashlib

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.network_view import NetworkView


def neighbouring_stages(stage: Stage, stages: int) -> tuple[Stage, ...]:
    """The stages before and after it in the ring of 0 to `stages`."""
    ring = stages + 1
    return tuple(sorted({Stage((stage - 1) % ring), Stage((stage + 1) % ring)} - {stage}))


def keepers(view: NetworkView, stage: Stage, copies: int) -> tuple[PeerId, ...]:
    """The peers that keep copies of this stage's checkpoints, fewer than `copies` if there are no more."""
    near = [peer for other in neighbouring_stages(stage, view.stages) for peer in view.peers_of_stage(other)]
    ranked = sorted(near, key=lambda peer: hashlib.sha256(f"{stage}/{peer}".encode()).digest(), reverse=True)
    return tuple(ranked[:copies])


def kept_by(view: NetworkView, me: PeerId, stage: Stage, copies: int) -> tuple[Stage, ...]:
    """The stages whose checkpoints this peer, of `stage`, has to keep."""
    return tuple(near for near in neighbouring_stages(stage, view.stages) if me in keepers(view, near, copies))
