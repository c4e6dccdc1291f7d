"""Which peers a microbatch that is only evaluated goes to: in each stage those that can take it, the fastest first.

Nothing of it is kept and no slot is promised, so a route is chosen hop by hop: whoever does not answer is passed over.
"""

from __future__ import annotations

from collections.abc import Collection

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView


def candidates(view: NetworkView, stage: Stage, excluded: Collection[PeerId] = ()) -> tuple[PeerId, ...]:
    """Routable peers of a stage by their forward time, ties by id."""
    peers = [peer for peer in view.peers_of_stage(stage) if peer not in excluded]
    return tuple(sorted(peers, key=lambda peer: (view.records[peer].forward_s, peer)))
