"""`random`: every holder takes any next peer with room, uniformly. The lowest baseline: what no decision at all costs."""

from __future__ import annotations

from random import Random

from gwtf_p2p.protocol.core.router import RouteRequest
from gwtf_p2p.protocol.flow.plan_keeper import Plan
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.greedy import GreedyRouter, HopConfig, pack
from gwtf_p2p.protocol.view.network_view import NetworkView


class RandomRouter(GreedyRouter):
    """The router of one peer; `random` must be its own, or all peers draw alike."""

    def __init__(self, random: Random, config: HopConfig | None = None) -> None:
        super().__init__(config)
        self._random = random

    def _choose(self, view: NetworkView, request: RouteRequest, peers: tuple[PeerId, ...]) -> PeerId:
        return self._random.choice(peers)

    def _how(self) -> str:
        return "any"


def random_plan(problem: Problem, random: Random) -> tuple[Plan, str]:
    """A whole problem packed at random, hop by hop."""
    return pack(problem, lambda costs: random.randrange(len(costs)))
