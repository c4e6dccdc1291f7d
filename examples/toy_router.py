"""A whole router: every microbatch goes to the peer of each stage that computes fastest. CONTRIBUTING.md builds on it."""

from __future__ import annotations

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView


class FastestRouter:
    """Answers from the records alone; at most `in_flight` microbatches of its data peer are on their way at once."""

    def __init__(self, in_flight: int) -> None:
        self._in_flight = in_flight
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
        is_new = request.after == request.microbatch.data_peer and request.microbatch not in self._flying
        if self._view is None or (is_new and len(self._flying) >= self._in_flight):
            return NoRoute("no view yet" if self._view is None else f"{self._in_flight} in flight")
        way: list[PeerId] = []
        for stage in range(request.first_stage, request.last_stage + 1):
            records = [self._view.records[p] for p in self._view.peers_of_stage(Stage(stage)) if p not in request.excluding]
            if not records:
                return NoRoute(f"nobody in stage {stage} can be asked")
            way.append(min(records, key=lambda record: (record.forward_s + record.backward_s, record.peer)).peer)
        if is_new:
            self._flying.add(request.microbatch)
        return Route(tuple(way), "the fastest of each stage")
