"""The live view of a local run in a terminal, and its plain lines where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gwtf_p2p.monitor.run_state import RunState

BARS = "▁▂▃▄▅▆▇█"
EVENTS_SHOWN = 5
ROUTES_SHOWN = 4


@dataclass
class PeerLine:
    """What the view says of one peer."""

    role: str
    stage: int
    state: str = "starting"
    microbatches: int = 0
    iteration: int = 0


def sparkline(values: list[float], width: int = 48) -> str:
    """The last values as a row of bars, lowest to highest."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))] for value in shown)


def progress_line(state: RunState, iteration: int) -> str:
    """One committed iteration in one line."""
    seconds = state.ended_at[iteration] - state.begun_at.get(iteration, state.ended_at[iteration])
    rate = state.expected * state.tokens_per_microbatch / seconds if seconds > 0 else 0.0
    repaired = f"  recoveries {sum(state.recoveries.values())}" if state.recoveries else ""
    return f"step {iteration + 1:4d}  loss {state.loss(iteration):.4f}  {seconds:5.2f} s  {rate:7.0f} tokens/s{repaired}"


def render(state: RunState, peers: Mapping[str, PeerLine], title: str, steps: int) -> RenderableType:
    """The whole view."""
    losses = [state.loss(i) for i in sorted(state.ended_at)]
    head = Text()
    head.append(f"step {state.iterations}/{steps}", style="bold")
    if losses:
        head.append(f"   loss {losses[0]:.4f} → {losses[-1]:.4f}   {state.tokens_per_second():.0f} tokens/s")
    head.append(f"   recoveries {sum(state.recoveries.values())}")
    recovery = state.recovery
    if recovery.delay_s is not None:
        head.append(f", {1000 * recovery.delay_s:.0f} ms each")
    if recovery.computed_s:
        head.append(f"   wasted {recovery.wasted_fraction:.1%}")
    if state.pause:
        head.append(f"   {state.pause}", style="bold red")
    table = Table(expand=True, box=None)
    for column in ("peer", "role", "stage", "state", "iteration", "microbatches"):
        table.add_column(column, justify="right" if column in ("stage", "iteration", "microbatches") else "left")
    for name, line in peers.items():
        stage = "" if line.role == "bootstrap" else str(line.stage)
        style = "" if line.state == "online" else "dim" if line.state == "starting" else "red"
        done = "" if line.role == "bootstrap" else str(line.microbatches)
        table.add_row(name, line.role, stage, line.state, str(line.iteration) if stage else "", done, style=style)
    routes = Text("\n".join(f"{count:5d} ×  {' → '.join(route)}" for route, count in state.routes.most_common(ROUTES_SHOWN)))
    parts: list[RenderableType] = [head, Text(sparkline(losses), style="cyan"), table]
    if routes:
        parts.append(Panel(routes, title="routes used most", title_align="left"))
    if state.events:
        parts.append(Panel(Text("\n".join(state.events[-EVENTS_SHOWN:])), title="events", title_align="left"))
    return Panel(Group(*parts), title=title)
