"""Ways through stages for single microbatches: repairs, and flows with excluded stage peers replaced.

The cost of a way is the paper's linear one (`costs`): what counts for one microbatch is its own delay.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np

from gwtf_p2p.protocol.core.router import NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.flow.min_cost import IntArray
from gwtf_p2p.protocol.flow.problem import hop_costs_us
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.routers.spare import SpareCapacity


class CheapestWays:
    """The ways that peer `me` chooses, by what `spare` knows of the peers' room."""

    def __init__(self, me: PeerId, spare: SpareCapacity) -> None:
        self.me, self._spare = me, spare

    def mended(self, request: RouteRequest, stage_peers: tuple[PeerId, ...]) -> Route | NoRoute:
        """A flow with its excluded stage peers replaced, each run of them by the cheapest way between its neighbours."""
        way = list(stage_peers)
        for excluded, run in groupby(range(len(stage_peers)), key=lambda k: stage_peers[k] in request.excluding):
            if not excluded:
                continue
            gap = list(run)
            before = way[gap[0] - 1] if gap[0] > 0 else self.me
            rejoin = stage_peers[gap[-1] + 1] if gap[-1] + 1 < len(stage_peers) else None
            first, last = Stage(gap[0] + 1), Stage(gap[-1] + 1)
            part = replace(request, after=before, first_stage=first, last_stage=last, rejoin=rejoin)
            answer = self.cheapest(part)
            if isinstance(answer, NoRoute):
                return answer
            way[gap[0] : gap[-1] + 1] = answer.peers
        return Route(
            tuple(way), f"flow with {sum(a != b for a, b in zip(way, stage_peers, strict=True))} excluded peers replaced"
        )

    def cheapest(self, request: RouteRequest) -> Route | NoRoute:
        """Through `first_stage`..`last_stage`, counting the hop from `after` and the one onwards; ties to the lowest ids."""
        view = self._spare.view
        assert view is not None
        before: tuple[PeerId, ...] = (request.after,)
        cost: IntArray = np.zeros(1, dtype=np.int64)
        ways: list[tuple[PeerId, ...]] = [()]
        all_roomy = True
        for stage in stages_of(request):
            peers, roomy = self._spare.able(stage, request.excluding)
            if not peers:
                return NoRoute(f"no peer of stage {stage} can be asked")
            through = cost[:, None] + hop_costs_us(view, before, peers)
            best = through.argmin(axis=0)
            ways = [(*ways[i], peer) for i, peer in zip(best.tolist(), peers, strict=True)]
            cost, before, all_roomy = through.min(axis=0), peers, all_roomy and roomy
        onward = request.rejoin or (request.microbatch.data_peer if request.last_stage == view.stages else None)
        if onward is not None and onward in view.records:
            cost = cost + hop_costs_us(view, before, (onward,))[:, 0]
        way = ways[int(cost.argmin())]
        self._spare.sent(request.microbatch, way)
        return Route(way, f"cheapest way of {cost.min()} us{'' if all_roomy else ', not all known to have room'}")


def stages_of(request: RouteRequest) -> list[Stage]:
    return [Stage(k) for k in range(request.first_stage, request.last_stage + 1)]
