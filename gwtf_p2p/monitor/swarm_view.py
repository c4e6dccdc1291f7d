"""A running swarm in the terminal: the whole view, and one line where there is no terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gwtf_p2p.monitor.swarm_state import SHOWN, SwarmState
from gwtf_p2p.monitor.terminal import sparkline
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.wire.records import PeerState

CHANGES_SHOWN = 6


def plain_line(state: SwarmState) -> str:
    """The state in one line."""
    online = sum(record.is_routable for record in state.records.values())
    loss = f"loss {state.losses[max(state.losses)]:.4f}" if state.losses else "loss unknown"
    speed = f"{state.tokens_per_second:.0f} tokens/s"
    return f"iteration {state.version}  {loss}  {speed}  {online}/{len(state.records)} peers online"


def render_swarm(state: SwarmState) -> RenderableType:
    """Head line, loss, stages, peers, changes."""
    table = Table(expand=True, box=None)
    for column in ("peer", "role", "stage", "state", "iteration", "held", "forward", "backward", "path", "microbatches"):
        table.add_column(column, justify="left" if column in ("peer", "role", "state", "path") else "right")
    for record in sorted(state.records.values(), key=lambda r: (r.stage, r.peer)):
        table.add_row(
            record.peer[-SHOWN:],
            "data" if record.stage == DATA_STAGE else "stage",
            str(record.stage),
            record.state.value,
            str(record.weights_version),
            f"{record.occupancy}/{record.capacity}",
            f"{1000 * record.forward_s:.0f} ms",
            f"{1000 * record.backward_s:.0f} ms",
            record.path.value,
            f"{record.progress.get('microbatches', 0):.0f}",
            style="" if record.state is PeerState.ONLINE else "red",
        )
    empty = [k for k, count in state.online().items() if not count]
    parts: list[RenderableType] = [Text(plain_line(state), style="bold")]
    if empty:
        parts.append(Text(f"no peer online in stage {', '.join(map(str, empty))}: training waits", style="bold red"))
    losses = [state.losses[i] for i in sorted(state.losses)]
    if losses:
        parts.append(Text(sparkline(losses), style="cyan"))
    parts.append(table)
    if state.changes:
        told = "\n".join(change.text for change in list(state.changes)[-CHANGES_SHOWN:])
        parts.append(Panel(Text(told), title="what happened", title_align="left"))
    return Panel(Group(*parts), title=f"gwtf monitor · {state.run.run_id} · router {state.run.router}")
