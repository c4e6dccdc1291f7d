"""What happened, as text: a digest of every event, and optionally a file to look at.

The digest covers time, peer and content of every event that a state machine was fed, in order. Equal digests mean equal
runs. A `.jsonl` file has one object per event, report and span; a `.json` file is a Chrome trace (chrome://tracing,
ui.perfetto.dev) with a row group per peer: its computations, and its transfers as they leave.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId

MICROSECONDS = 1e6
SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time at a peer: a computation (`what` is the work), a transfer (to `to`) or an average.

    `began`, `ended` in seconds of the run's clock; `size` in bytes, as charged to the lines.
    """

    peer: PeerId
    what: str
    about: str
    began: float
    ended: float
    to: PeerId | None = None
    size: int = 0


def _tensor(event: ev.Offered | ev.Delivered | ev.DeliveryBroken) -> str:
    message = event.message
    return f"{event.sender} {type(message).__name__} {message.microbatch} {message.attempt}"


def _planned(event: ev.Planned) -> str:
    """The plan's flows and reason: the plan that it revises is no part of what the peer is told."""
    plan = event.plan
    return f"{type(plan).__name__} {plan.flows} {plan.reason}" if plan is not None else "NoneType  "


_ABOUT: dict[type[Any], Callable[[Any], str]] = {
    ev.Offered: _tensor,
    ev.Delivered: _tensor,
    ev.DeliveryBroken: _tensor,
    ev.ViewChanged: lambda e: str(len(e.view.records)),
    ev.Ordered: lambda e: " ".join(f"{o.issuer}:{o.sequence_number}" for o in e.orders),
    ev.PushAnswered: lambda e: f"{e.token} {e.verdict.name}",
    ev.PushDelivered: lambda e: str(e.token),
    ev.PushFailed: lambda e: f"{e.token} {e.reason}",
    ev.Received: lambda e: f"{e.sender} {type(e.message).__name__} {getattr(e.message, 'microbatch', '')}",
    ev.SendFailed: lambda e: f"{e.to} {type(e.message).__name__}",
    ev.Computed: lambda e: f"{e.work.name} {e.microbatch}",
    ev.Planned: _planned,
    ev.TimerFired: lambda e: f"{e.name[0].value} {e.name[1]}",
    ev.AverageDone: lambda e: f"{e.iteration} {e.attempt} {e.digest}",
}


def about(event: ev.Event) -> str:
    """The event in short."""
    describe = _ABOUT.get(type(event))
    return describe(event) if describe is not None else repr(event)


class Trace:
    """Listens to a world. `events` keeps everything for a file; without it only the digest is made."""

    def __init__(self, keep: bool = False) -> None:
        self._digest = hashlib.sha256()
        self._keep = keep
        self._lines: list[dict[str, object]] = []
        self._spans: list[Span] = []

    def event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        what = about(event)
        self._digest.update(f"{now!r} {peer} {type(event).__name__} {what}\n".encode())
        if self._keep:
            self._lines.append({"at_s": now, "peer": peer, "event": type(event).__name__, "about": what})

    def report(self, peer: PeerId, report: ef.Report, now: float) -> None:
        if self._keep:
            self._lines.append({"at_s": now, "peer": peer, "report": report.name, **report.fields})

    def span(self, span: Span) -> None:
        if self._keep:
            self._spans.append(span)
            line: dict[str, object] = {"at_s": span.ended, "peer": span.peer, "span": span.what, "began_s": span.began}
            self._lines.append({**line, "about": span.about, **({"to": span.to} if span.to else {})})

    @property
    def spans(self) -> tuple[Span, ...]:
        """Everything that took time, of a trace that keeps."""
        return tuple(self._spans)

    def ways(self) -> Counter[tuple[str, ...]]:
        """Microbatches by the way that they came back on: data peer, stage peers, data peer; of a trace that keeps."""
        done = [line for line in self._lines if line.get("report") == "microbatch_done"]
        walked = ((line["peer"], *_peers(line["route"]), line["peer"]) for line in done)
        return Counter(tuple(str(peer) for peer in way) for way in walked)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, path: Path) -> None:
        """By extension: `.jsonl` or `.json`. Raises InputError when the file cannot be written."""
        try:
            with path.open("w", encoding="utf-8") as file:
                if path.suffix == ".jsonl":
                    file.writelines(json.dumps(line, default=str) + "\n" for line in self._lines)
                else:
                    json.dump({"traceEvents": chrome_events(self._spans), "displayTimeUnit": "ms"}, file)
        except OSError as error:
            raise InputError(str(path), "", f"expected a file that can be written ({error.strerror})") from error


def _peers(route: object) -> tuple[object, ...]:
    return tuple(route) if isinstance(route, list | tuple) else ()


def check_trace_path(path: Path) -> None:
    """Raises InputError before a long run rather than after it."""
    if path.suffix not in SUFFIXES:
        raise InputError("--trace", "", f"expected a file ending in .jsonl or .json, got {path.name!r}")
    if not path.parent.is_dir():
        raise InputError("--trace", "", f"expected a file in a folder that exists, got {str(path)!r}")


def chrome_events(spans: Iterable[Span]) -> list[dict[str, object]]:
    """Complete events ("X"); a peer is a process, its computations are row 0, overlapping transfers take further rows."""
    ordered = sorted(spans, key=lambda span: (span.peer, span.began, span.ended, span.about))
    numbers = {peer: i + 1 for i, peer in enumerate(sorted({span.peer for span in ordered}))}
    events: list[dict[str, object]] = [
        {"name": "process_name", "ph": "M", "pid": number, "args": {"name": peer}} for peer, number in numbers.items()
    ]
    free_at: dict[tuple[PeerId, int], float] = {}
    for span in ordered:
        row = 0
        if span.to is not None:
            row = 1
            while free_at.get((span.peer, row), 0.0) > span.began:
                row += 1
            free_at[span.peer, row] = span.ended
        events.append(
            {
                "name": f"{span.what} {span.about}",
                "cat": "compute" if span.to is None else "transfer",
                "ph": "X",
                "ts": span.began * MICROSECONDS,
                "dur": (span.ended - span.began) * MICROSECONDS,
                "pid": numbers[span.peer],
                "tid": row,
                "args": {"to": span.to} if span.to else {},
            }
        )
    return events
