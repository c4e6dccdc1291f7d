"""A router with a stopwatch: how many seconds its peer spends on routing, for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.routers.base import HopObservation, NoRoute, Route, Router, RouteRequest


class TimedRouter:
    """Passes everything on. `add` hears the seconds of each call, by `clock`; other attributes are the router's own."""

    def __init__(self, router: Router, clock: Callable[[], float], add: Callable[[float], None]) -> None:
        self._router, self._clock, self._add = router, clock, add

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)

    def observe_view(self, view: NetworkView, now: float) -> None:
        began = self._clock()
        self._router.observe_view(view, now)
        self._add(self._clock() - began)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        began = self._clock()
        self._router.observe_hop(hop, now)
        self._add(self._clock() - began)

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        began = self._clock()
        self._router.observe_end(microbatch, now)
        self._add(self._clock() - began)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        began = self._clock()
        answer = self._router.route(request, now)
        self._add(self._clock() - began)
        return answer
