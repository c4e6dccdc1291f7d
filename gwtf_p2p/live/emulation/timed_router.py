"""A stopwatch on a router: how many seconds its peer spends on routing and planning, for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gwtf_p2p.protocol.core.router import Router

METHODS = ("observe_view", "observe_hop", "observe_end", "route", "hear", "tick", "planned")
"""Of `Router` and of its further kinds; what a router does not have is left out."""

P = ParamSpec("P")
R = TypeVar("R")


def timed_call(call: Callable[P, R], clock: Callable[[], float], add: Callable[[float], None]) -> Callable[P, R]:
    """The same function; `add` hears the seconds of each call by `clock`. Making a plan is timed so, where it is made."""

    def measured(*arguments: P.args, **named: P.kwargs) -> R:
        began = clock()
        try:
            return call(*arguments, **named)
        finally:
            add(clock() - began)

    return measured


def timed(router: Router, clock: Callable[[], float], add: Callable[[float], None]) -> Router:
    """The same router; from now on `add` hears the seconds of each of its calls, by `clock`.

    Its methods are replaced on the object, so that it stays what it is for those who ask (`isinstance`).
    """
    for name in METHODS:
        method = getattr(router, name, None)
        if method is not None:
            setattr(router, name, timed_call(method, clock, add))
    return router
