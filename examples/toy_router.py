"""A whole router: every microbatch goes to the peer of each stage that computes fastest. CONTRIBUTING.md builds on it."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.view.network_view import NetworkView


@dataclass(frozen=True, slots=True)
class FastestConfig(RouterSettings):
    """`in_flight`: own microbatches under way at once, 0 for no limit. Stage peers inject none, so it does not concern them."""

    in_flight: int = 0

    def __post_init__(self) -> None:
        if self.in_flight < 0:
            raise ValueError(f"in_flight: expected a whole number from 0, got {self.in_flight}")


class FastestRouter:
    """The router of one peer: it answers from the records alone."""

    def __init__(self, config: FastestConfig | None = None) -> None:
        self._in_flight = (config or FastestConfig()).in_flight
        self._view: NetworkView | None = None
        self._flying: set[MicrobatchId] = set()

    def observe_view(self, view: NetworkView, now: float) -> None:
        """The records changed."""
        self._view = view

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        """What hops took does not matter here: published compute times do."""

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        """A microbatch of this data peer is done, or withdrawn."""
        self._flying.discard(microbatch)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        """The fastest peer of each stage that is not excluded; ties to the lowest id."""
        if self._view is None or (request.is_new and 0 < self._in_flight <= len(self._flying)):
            return NoRoute("no view yet" if self._view is None else f"{self._in_flight} in flight")
        way: list[PeerId] = []
        for stage in range(request.first_stage, request.last_stage + 1):
            records = [self._view.records[p] for p in self._view.peers_of_stage(Stage(stage)) if p not in request.excluding]
            if not records:
                return NoRoute(f"nobody in stage {stage} can be asked")
            way.append(min(records, key=lambda record: (record.forward_s + record.backward_s, record.peer)).peer)
        if request.is_new:
            self._flying.add(request.microbatch)
        return Route(tuple(way), "the fastest of each stage")
