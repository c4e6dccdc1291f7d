"""The live view of a run on this machine (`gwtf demo`), and its plain lines where there is no terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from rich.text import Text

from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.terminal.fit import Column, Section, fit, progress_bar, sparkline, table
from gwtf_p2p.protocol.stall.rules import duration

EVENTS_SHOWN, EVENTS_LEAST = 12, 3
ROUTES_SHOWN = 4
STAGES_LEAST = 6
PACE_ITERATIONS = 20
"""The time that is left is told by the median of so many iterations."""

COLUMNS = (
    Column("peer"),
    Column("state"),
    Column("stage", 3, is_number=True),
    Column("step", 2, is_number=True),
    Column("microbatches", 1, is_number=True),
)
MARKS = {"online": ("●", "green"), "starting": ("○", "dim")}
"""Of a peer in the short form; any other state is a red cross."""


@dataclass
class PeerLine:
    """What the view says of one peer."""

    role: str
    stage: int
    state: str = "starting"
    microbatches: int = 0
    iteration: int = 0
    done: str = ""
    """The last step of its start."""


def progress_line(state: RunState, iteration: int) -> str:
    """One committed iteration in one line."""
    seconds = state.ended_at[iteration] - state.begun_at.get(iteration, state.ended_at[iteration])
    rate = state.expected * state.tokens_per_microbatch / seconds if seconds > 0 else 0.0
    repaired = f"  recoveries {sum(state.recoveries.values())}" if state.recoveries else ""
    return f"step {iteration + 1:4d}  loss {state.loss(iteration):.4f}  {seconds:5.2f} s  {rate:7.0f} tokens/s{repaired}"


def seconds_left(state: RunState, steps: int) -> float | None:
    """At the pace of the last iterations; None before the first."""
    last = state.iteration_seconds()[-PACE_ITERATIONS:]
    return median(last) * max(0, steps - state.iterations) if last else None


def local_view(
    state: RunState, peers: Mapping[str, PeerLine], steps: int, size: tuple[int, int], title: str = "gwtf demo"
) -> list[Text]:
    """All lines for a terminal of `size` (columns, lines)."""
    width, height = size
    losses = state.known_losses()
    rows = [(_cells(name, line), "" if line.state == "online" else MARKS.get(line.state, ("", "red"))[1])
            for name, line in peers.items()]  # fmt: skip
    routes = [Text(f"{count:5d} × {' → '.join(route)}") for route, count in state.routes.most_common(ROUTES_SHOWN)]
    events = [Text(text) for text in reversed(state.events)]
    by_stage = _by_stage(peers, width)
    spark = sparkline(losses, max(8, width - 6))
    peer_lines = table(COLUMNS, rows, width) if rows else []
    sections = [
        Section([_head(state, peers, steps, width, title)], 0),
        Section([Text(state.pause, style="bold red")] if state.pause else [], 0),
        Section([_figures(state, losses)], 1),
        Section([Text(state.note, style="yellow")] if state.note else [], 2),
        Section([Text.assemble("loss  ", (spark, "cyan"))] if losses else [], 4),
        Section(events, 2, EVENTS_LEAST, EVENTS_SHOWN, "events, newest first"),
        Section(peer_lines, 3, min(len(by_stage), STAGES_LEAST), title="peers", rest="peers", compact=by_stage),
        Section(routes, 5, title="routes used most"),
    ]
    return fit(sections, width, height)


def _head(state: RunState, peers: Mapping[str, PeerLine], steps: int, width: int, title: str) -> Text:
    there = sum(line.state == "online" for line in peers.values())
    if not state.begun_at:
        words = f"{title}: {there} of {len(peers)} peers online "
        return Text.assemble((words, "bold"), progress_bar(there, len(peers), width - len(words)))
    left = seconds_left(state, steps)
    words = f"step {state.iterations}/{steps} "
    ending = "" if left is None else f"  {duration(left)} left"
    return Text.assemble((words, "bold"), progress_bar(state.iterations, steps, width - len(words) - len(ending)), ending)


def _figures(state: RunState, losses: list[float]) -> Text:
    parts = []
    if losses:
        parts += [f"loss {losses[0]:.4f} → {losses[-1]:.4f}", f"{state.tokens_per_second():.0f} tokens/s"]
    count, recovery = sum(state.recoveries.values()), state.recovery
    each = f", {1000 * recovery.delay_s:.0f} ms each" if recovery.delay_s is not None else ""
    parts.append(f"recoveries {count}{each}")
    if recovery.computed_s:
        parts.append(f"wasted {recovery.wasted_fraction:.1%}")
    return Text(" · ".join(parts))


def _cells(name: str, line: PeerLine) -> tuple[str, ...]:
    if line.role == "bootstrap":
        return name, line.state, "", "", ""
    return name, line.state, str(line.stage), str(line.iteration), str(line.microbatches)


def _by_stage(peers: Mapping[str, PeerLine], width: int) -> list[Text]:
    """A line per stage: its peers with a mark for their state and what they have done; numbers where there is no room."""
    lines = []
    for stage in sorted({line.stage for line in peers.values() if line.role != "bootstrap"}):
        told = Text(f"stage {stage}:" if stage else "data:   ")
        counts = told.copy()
        here = {name: line for name, line in peers.items() if line.stage == stage and line.role != "bootstrap"}
        for name, line in here.items():
            mark, style = MARKS.get(line.state, ("✗", "red"))
            told.append(f"  {mark} {name} {line.microbatches}", style)
        for state, count in sorted(Counter(line.state for line in here.values()).items()):
            counts.append(f"  {count} {state}", MARKS.get(state, ("", "red"))[1])
        counts.append(f"  {sum(line.microbatches for line in here.values())} microbatches")
        lines.append(told if told.cell_len <= width else counts)
    return lines
