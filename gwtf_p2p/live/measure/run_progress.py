"""What this peer has measured of the run itself, for its record: observers read it, routers do not.

Of a stage peer: the microbatches that it is credited with, how many steps in a row were skipped, and how evaluations have gone.
Of a data peer also its loss, what its last evaluation has found, its iteration, and how long microbatches took on each route,
from injection to done (median of the last few). Routes are named by the ends of their circuit relays' ids.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from gwtf_p2p.protocol.stall.rules import SKIPPED
from gwtf_p2p.protocol.view.evaluations import REPORT, figures
from gwtf_p2p.protocol.wire.messages import Evaluated, Evaluations

HELD_OUT = "held_out_loss"
"""Where a data peer that measures it puts the loss on text that is not trained on."""

ROUTES_TOLD = 12
SAMPLES = 8
NAME = 6
"""Characters of a peer id that tell peers apart well enough to be read by people."""


def route_name(relays: list[str] | tuple[str, ...]) -> str:
    return ">".join(peer[-NAME:] for peer in relays)


class Progress:
    """Hears the peer's reports; `now` is in seconds and only compared with other values of `now`."""

    def __init__(self) -> None:
        self.microbatches = 0
        self._injected_at: dict[str, float] = {}
        self._took_s: dict[str, deque[float]] = {}
        self._losses: dict[int, list[float]] = {}
        self._began: tuple[int, float] | None = None
        self._iteration_s = 0.0
        self._loss: float | None = None
        self._skipped = 0
        self._newest = -1
        self._held_out: tuple[int, float] | None = None
        self._evaluations: dict[str, float] = {}

    def hear(self, name: str, fields: Mapping[str, Any], now: float) -> None:
        match name:
            case "injected":
                self._injected_at[fields["microbatch"]] = now
            case "microbatch_done":
                self._done(fields["microbatch"], fields["loss"], route_name(fields["route"]), now)
            case "iteration_begins":
                iteration = int(fields["iteration"])  # of which something may be on its way already
                self._injected_at = {m: at for m, at in self._injected_at.items() if _iteration_of(m) >= iteration}
                self._began = (iteration, now)
            case "stepped":
                self.microbatches += 0 if fields["skipped"] else int(fields["microbatches"])
                self._skipped = self._skipped + 1 if fields["skipped"] else 0
                self._stepped(int(fields["iteration"]), now)
            case "evaluated" if math.isfinite(fields["loss"]):
                self._held_out = int(fields["iteration"]), fields["loss"]
            case name if name == REPORT:
                newest = Evaluated(fields["iteration"], fields["loss"])
                self._evaluations = figures(Evaluations(newest, fields["best_version"], fields["best_loss"], fields["waited"]))
            case _:
                pass

    def figures(self) -> dict[str, float]:
        """For the record; what is not measured is left out."""
        told: dict[str, float] = {"microbatches": float(self.microbatches)}
        if self._loss is not None:
            told["loss"] = round(self._loss, 6)
        if self._skipped:
            told[SKIPPED] = float(self._skipped)
        if self._iteration_s:
            told["iteration_s"] = round(self._iteration_s, 4)
        if self._held_out is not None and self._newest <= self._held_out[0] <= self._newest + 1:
            told[HELD_OUT] = round(self._held_out[1], 6)  # of the weights that the iteration began with, or has made
        return told | self._evaluations

    def route_seconds(self) -> dict[str, float]:
        """Median seconds by route, of the routes used last."""
        return {name: round(median(took), 4) for name, took in list(self._took_s.items())[-ROUTES_TOLD:]}

    def _done(self, microbatch: str, loss: float | None, route: str, now: float) -> None:
        if loss is not None:
            self._losses.setdefault(_iteration_of(microbatch), []).append(loss)
        injected_at = self._injected_at.pop(microbatch, None)
        if injected_at is not None:
            took = self._took_s.pop(route, deque(maxlen=SAMPLES))  # used last: to the end
            took.append(now - injected_at)
            self._took_s[route] = took

    def _stepped(self, iteration: int, now: float) -> None:
        self._newest = iteration
        losses = self._losses.pop(iteration, [])
        self._losses = {i: kept for i, kept in self._losses.items() if i > iteration}
        if losses:
            self._loss = fmean(losses)
        if self._began is not None and self._began[0] == iteration:
            self._iteration_s = now - self._began[1]


def _iteration_of(microbatch: str) -> int:
    return int(microbatch.split("/")[1])
