"""A running swarm in the terminal: the whole view, and one line where there is no terminal."""

from __future__ import annotations

import time

from rich.text import Text

from gwtf_p2p.monitor.health import Level, findings
from gwtf_p2p.monitor.ledger import called
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.monitor.terminal.fit import Column, Section, fit, progress_bar, sparkline, table
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.stall.rules import duration
from gwtf_p2p.protocol.view.contributions import Contribution
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

CHANGES_SHOWN, CHANGES_LEAST = 10, 3
NAME = 12
"""Most characters of a peer's name."""
STAGES_LEAST = 6
STYLES = {Level.ALERT: "bold red", Level.NOTICE: "yellow", Level.OK: "green"}
COLUMNS = (
    Column("peer"),
    Column("stage", is_number=True),
    Column("state"),
    Column("iteration", 2, is_number=True),
    Column("held", 3, is_number=True),
    Column("forward", 5, is_number=True),
    Column("backward", 6, is_number=True),
    Column("path", 4),
    Column("microbatches", 1, is_number=True),
)


def plain_line(state: SwarmState) -> str:
    """The state in one line."""
    online = sum(state.online().values())
    loss = f"loss {state.losses[max(state.losses)]:.4f}" if state.losses else "loss unknown"
    speed = f"{state.tokens_per_second:.0f} tokens/s"
    return f"iteration {state.version}  {loss}  {speed}  {online}/{len(state.records)} peers online"


def swarm_view(state: SwarmState, size: tuple[int, int]) -> list[Text]:
    """All lines for a terminal of `size` (columns, lines)."""
    width, height = size
    losses = [state.losses[i] for i in sorted(state.losses)]
    found = [Text(finding.text, style=STYLES[finding.level]) for finding in findings(state, state.seen_at)]
    changes = [Text(f"{clock(change.at)}  {change.text}") for change in reversed(state.changes)]
    by_stage = _by_stage(state)
    done = state.told.contributions.by_peer
    peers = table(COLUMNS, [_row(state, record, done.get(record.peer)) for record in state.by_stage()], width)
    sections = [
        Section([Text(f"{state.run.run_id} · router {state.run.router}", style="bold")], 1),
        Section([Text(plain_line(state))], 0),
        Section([_progress(state, width)] if state.run.total_iterations else [], 2),
        Section(found, 0, most=4),
        Section([Text.assemble("loss  ", (sparkline(losses, max(8, width - 6)), "cyan"))] if losses else [], 5),
        Section(changes, 3, CHANGES_LEAST, CHANGES_SHOWN, "what happened, newest first"),
        Section(peers, 4, min(len(by_stage), STAGES_LEAST), title="peers", rest="peers", compact=by_stage),
    ]
    return fit(sections, width, height)


def clock(at: float) -> str:
    """Time of day, where this terminal is."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def _progress(state: SwarmState, width: int) -> Text:
    left = state.seconds_left
    ending = "" if left is None else f"  {duration(left)} left"
    return Text.assemble(progress_bar(state.version, state.run.total_iterations, width - len(ending)), ending)


def _row(state: SwarmState, record: StageRecord, done: Contribution | None) -> tuple[tuple[str, ...], str]:
    cells = (
        called(record.peer, record)[:NAME],
        "data" if record.stage == DATA_STAGE else str(record.stage),
        "silent" if record.peer in state.silent else record.state.value.lower(),
        str(record.weights_version),
        f"{record.occupancy}/{record.capacity}",
        f"{1000 * record.forward_s:.0f} ms",
        f"{1000 * record.backward_s:.0f} ms",
        record.path.value,
        str(done.microbatches) if done is not None else "",
    )
    is_well = record.state is PeerState.ONLINE and record.peer not in state.silent
    return cells, "" if is_well else "red"


def _by_stage(state: SwarmState) -> list[Text]:
    """A line per stage: how many are in which state."""
    by_state, lines = state.by_state(), []
    for stage in range(state.run.stages + 1):
        counted = [f"{n} {peer_state.value.lower()}" for (k, peer_state), n in sorted(by_state.items(), key=str) if k == stage]
        name = f"stage {stage}" if stage else "data"
        lines.append(Text(f"{name:8} {', '.join(counted) or 'nobody'}", style="" if counted else "red"))
    return lines
