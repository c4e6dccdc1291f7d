"""The runs of one monitor: takes each look, keeps it in the history, and holds what requests are answered from.

Looks come from the observer's thread, requests from the web server's. What they share is replaced whole, or used under a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.monitor.history.store import History
from gwtf_p2p.monitor.ledger import Entry, entries
from gwtf_p2p.monitor.page.document import Numbers, document, peer_details
from gwtf_p2p.monitor.page.feed import Feed
from gwtf_p2p.monitor.page.gantt import planned_iteration
from gwtf_p2p.monitor.page.join_line import JoinLine
from gwtf_p2p.monitor.page.metrics import prometheus
from gwtf_p2p.monitor.routes import RoutePlans
from gwtf_p2p.monitor.swarm_state import EVENTS_KEPT, LOSSES_KEPT, Change, SwarmState
from gwtf_p2p.protocol.ids import PeerId

PLAN_SHARE = 400
"""A forecast of the published plan is made again after so many times as long as the last took: a quarter of a per cent of a
core."""

POINTS = 1000
MOST_POINTS = 4000
BOARD = 50


@dataclass(frozen=True, slots=True)
class PageOptions:
    """`public`: no addresses of peers are told. `join` is the line that readers are shown."""

    public: bool = False
    join: JoinLine = field(default_factory=JoinLine)


@dataclass
class WatchedRun:
    """One run."""

    state: SwarmState
    plans: RoutePlans
    first_seen: float
    feed: Feed = field(default_factory=Feed)
    numbers: Numbers = field(default_factory=Numbers)
    plan_after_s: float = 0.0

    def ledger(self) -> list[Entry]:
        """Everybody who has contributed, most first."""
        return entries(self.state.told, self.state.run, self.state.records)


class WatchedRuns:
    """All runs of a monitor, by id."""

    def __init__(self, history: History, options: PageOptions | None = None) -> None:
        self.history, self.options = history, options or PageOptions()
        self.by_id: dict[str, WatchedRun] = {}
        self._lock = threading.Lock()

    def look(self, state: SwarmState, changes: list[Change]) -> None:
        """A look at one run, as the observer tells it."""
        run_id = state.run.run_id
        with self._lock:
            run = self.by_id.get(run_id)
            if run is None:
                run = self._begin(state)
            run.state = state = state.frozen()
            self._keep(run, changes)
            now = time.perf_counter()
            if now >= run.plan_after_s:
                run.plans.look([r for r in state.records.values() if r.peer not in state.silent])
                run.plan_after_s = time.perf_counter() + PLAN_SHARE * (time.perf_counter() - now)
            told = document(state, run.plans, run.numbers, self.options.join, run.first_seen)
            told["trouble"] = self.history.trouble
            points = [
                _point(state, (s.iteration, s.loss, s.loss, s.loss, s.held_out_loss, s.iteration_s)) for s in state.samples
            ]
            self.by_id[run_id] = run  # only now: whoever finds a run finds its document
        run.feed.publish(told, points)

    def _begin(self, state: SwarmState) -> WatchedRun:
        """A run that this monitor sees for the first time: what earlier monitors saw of it is taken over."""
        run_id, history = state.run.run_id, self.history
        for sample in history.newest_samples(run_id, state.version, LOSSES_KEPT):
            if sample.iteration not in state.losses:
                state.remember(sample)
        earlier = history.newest_changes(run_id, EVENTS_KEPT)
        now = list(state.changes)
        state.changes.clear()
        state.changes.extend([*earlier, *now])
        return WatchedRun(state, RoutePlans(state.run), history.began(run_id, state.seen_at))

    def _keep(self, run: WatchedRun, changes: list[Change]) -> None:
        if run.state.samples or changes:
            self.history.add(run.state.run.run_id, run.state.samples, changes, run.state.seen_at)

    # ---- what requests ask for

    def peer(self, run: WatchedRun, peer: str) -> dict[str, Any] | None:
        """The details of one peer, with what it has contributed to the run; None when nothing is known of it."""
        with self._lock:
            details = peer_details(run.state, PeerId(peer), self.options.public)
            entry = next((e for e in run.ledger() if e.peer == peer), None)
        if entry is not None:
            details = {"peer": peer, **(details or {}), "contributed": _contributed(entry)}
        return details

    def board(self, run: WatchedRun) -> dict[str, Any]:
        """Who has contributed most, as the data peers tell it."""
        with self._lock:
            told, rows = run.state.told, run.ledger()
        return {
            "version": told.version,
            "agree": told.agree,
            "data_peers": told.data_peers,
            "contributors": len(rows),
            "peers": [{"peer": e.peer, "name": e.name, "is_here": e.is_here, **_contributed(e)} for e in rows[:BOARD]],
        }

    def series(self, run: WatchedRun, first: int | None, last: int | None, points: int) -> dict[str, Any]:
        """Points of the charts between two iterations (None: from the first that is known, to the newest)."""
        run_id, state = run.state.run.run_id, run.state
        span = self.history.span(run_id, state.version)
        begin, end = span if span is not None else (0, -1)
        first, last = max(begin, first if first is not None else begin), min(end, last if last is not None else end)
        found = self.history.series(run_id, first, last, points) if first <= last else []
        rows = [_point(state, row) for row in found]
        return {"first": begin, "last": end, "tokens_per_iteration": state.tokens_per_iteration, "points": rows}

    def gantt(self, run: WatchedRun) -> dict[str, Any]:
        """The planned iteration, and what is measured of it."""
        return planned_iteration(run.state, run.plans.lines)

    def metrics(self) -> str:
        with self._lock:
            return prometheus([run.state for run in self.by_id.values()])

    def close(self) -> None:
        for run in self.by_id.values():
            run.feed.close()


def _point(state: SwarmState, row: Sequence[Any]) -> list[float | None]:
    """Of (iteration, loss, lowest, highest, held-out loss, seconds): tokens so far, the losses, tokens/s."""
    iteration, *losses, seconds = row
    tokens = state.tokens_per_iteration
    short = (None if value is None else float(f"{value:.6g}") for value in (*losses, tokens / seconds if seconds else None))
    return [(iteration + 1) * tokens, *short]


def _contributed(entry: Entry) -> dict[str, Any]:
    return {
        "stages": list(entry.stages),
        "microbatches": entry.microbatches,
        "tokens": entry.tokens,
        "seconds": round(entry.seconds, 1),
        "audits": entry.audits,
        "share": round(entry.share, 4),
    }
