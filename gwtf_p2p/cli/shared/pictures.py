"""What `--draw` of `gwtf plan`, `gwtf sim` and `gwtf replay` draws: plans and runs as flows, traces and event logs as bars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gwtf_p2p.drawing.flows import Flows, Place, flow_picture
from gwtf_p2p.drawing.replay import Bar, iteration, iterations_of, replay_html
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.replay.log import LogReader, Opening
from gwtf_p2p.protocol.wire.messages import Forward

STILL, MOVING = (".svg", ".png"), ".html"
SHOWN = 6
"""Last characters of a peer id."""


def plan_picture(problem: Problem, routes: Iterable[Sequence[str]], title: str, notes: Sequence[str]) -> str:
    """The flows of a plan, with the peers that it does not use."""
    counted: dict[tuple[str, ...], int] = {}
    for route in routes:
        counted[tuple(route)] = counted.get(tuple(route), 0) + 1
    places = {str(source.peer): Place(0, source.demand) for source in problem.data_peers}
    for stage, peers in enumerate(problem.stage_peers, start=1):
        places |= {str(one.peer): Place(stage, one.capacity) for one in peers}
    return flow_picture(Flows(problem.stages, counted, places, title, notes))


def run_picture(routes: Mapping[tuple[str, ...], int], title: str, notes: Sequence[str]) -> str:
    """The routes that the microbatches of a run took; each begins and ends at its data peer."""
    places = {peer: Place(stage) for route in routes for stage, peer in enumerate(route[:-1])}
    return flow_picture(Flows(max((place.stage for place in places.values()), default=0), routes, places, title, notes))


def iteration_page(bars: Sequence[Bar], stages: Mapping[str, int], number: int | None, title: str) -> str:
    """One iteration (None: the last that is there) as a page that plays it. Raises InputError when there is none."""
    found = iterations_of(bars)
    if not found:
        raise InputError("--draw", "", "expected a trace or an event log of an iteration, and there is no microbatch in it")
    if number is not None and number not in found:
        raise InputError("--iteration", str(number), f"expected one from {found[0]} to {found[-1]}")
    return replay_html(iteration(bars, stages, found[-1] if number is None else number), title)


def bars_of_files(paths: Sequence[Path]) -> tuple[list[Bar], dict[str, int]]:
    """The bars of several peers' event logs, or of a trace of `gwtf sim`, and each peer's stage. Raises InputError."""
    bars: list[Bar] = []
    stages: dict[str, int] = {}
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                _read_file(lines, bars, stages)
        except RemoteProtocolError as error:
            raise InputError(str(path), "", str(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(str(path), "", f"expected a readable text file, but {error}") from error
    return bars, stages


def _read_file(lines: Iterable[str], bars: list[Bar], stages: dict[str, int]) -> None:
    iterator = iter(lines)
    first = next(iterator, "")
    if '"span"' in first or '"event"' not in first or '"at_s"' in first:
        _read_trace(_chained(first, iterator), bars, stages)
    else:
        _read_log(_chained(first, iterator), bars, stages)


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _read_trace(lines: Iterable[str], bars: list[Bar], stages: dict[str, int]) -> None:
    """A trace of `gwtf sim --trace FILE.jsonl`. Raises RemoteProtocolError for what is none."""
    for line in lines:
        try:
            told: Any = json.loads(line)
            if told.get("report") == "microbatch_done":
                stages.update({str(peer): k for k, peer in enumerate(told["route"], start=1)}, **{str(told["peer"]): 0})
            elif "span" in told:
                peer, what, to = str(told["peer"]), str(told["span"]), str(told.get("to", ""))
                bars.append(Bar(peer, what, str(told["about"]), float(told["began_s"]), float(told["at_s"]), to))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteProtocolError(f"expected a line of `gwtf sim --trace FILE.jsonl`, got {line[:80]!r}") from error


def _read_log(lines: Iterable[str], bars: list[Bar], stages: dict[str, int]) -> None:
    """An event log: what the peer computed and averaged, and what came to it. Raises RemoteProtocolError for a bad line."""
    reader, me = LogReader(), ""
    offered: dict[tuple[PeerId, str, bool], float] = {}
    for line in lines:
        if not line.endswith("\n"):
            break  # torn: the peer was killed while it wrote
        read = reader.read(line)
        if isinstance(read, Opening):
            me = read.settings.me[-SHOWN:]
            stages[me] = read.settings.stage
            continue
        event, now = read.event, read.now
        match event:
            case ev.Computed():
                bars.append(Bar(me, event.work.value, str(event.microbatch), now - event.seconds, now))
            case ev.AverageDone():
                bars.append(Bar(me, "average", f"iteration {event.iteration}", now - event.seconds, now))
            case ev.Offered(sender, message):
                offered[sender, str(message.microbatch), isinstance(message, Forward)] = now
            case ev.Delivered(sender, message):
                is_forward = isinstance(message, Forward)
                began = offered.pop((sender, str(message.microbatch), is_forward), now)
                what = "forward" if is_forward else "backward"
                bars.append(Bar(sender[-SHOWN:], what, str(message.microbatch), began, now, me))
            case _:
                pass
