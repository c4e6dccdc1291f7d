"""A stopwatch on a router: how many seconds its peer spends on routing and planning, for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gwtf_p2p.protocol.core.router import Router

METHODS = ("observe_view", "observe_hop", "observe_end", "route", "hear", "tick", "planned")
"""Of `Router` and of its further kinds; what a router does not have is left out."""


def timed(router: Router, clock: Callable[[], float], add: Callable[[float], None]) -> Router:
    """The same router; from now on `add` hears the seconds of each of its calls and planning jobs, by `clock`.

    Its methods are replaced on the object, so that it stays what it is for those who ask (`isinstance`).
    """

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any) -> Any:
            began = clock()
            try:
                return call(*arguments)
            finally:
                add(clock() - began)

        return measured

    for name in METHODS:
        method = getattr(router, name, None)
        if method is not None:
            setattr(router, name, watched(method))
    planning = getattr(router, "planning", None)
    if planning is not None:
        setattr(router, "planning", lambda *arguments: _job(planning(*arguments), watched))  # noqa: B010  no method of Router
    return router


def _job(job: Callable[[], Any] | None, watched: Callable[..., Callable[[], Any]]) -> Callable[[], Any] | None:
    return None if job is None else watched(job)
