"""The view of one's own peer (`gwtf peer` and `gwtf data` in a terminal)."""

from __future__ import annotations

from rich.text import Text

from gwtf_p2p.monitor.own_peer import OwnPeer, megabytes
from gwtf_p2p.monitor.swarm_state import SHOWN
from gwtf_p2p.monitor.terminal.fit import Section, fit, progress_bar, sparkline
from gwtf_p2p.monitor.terminal.swarm_view import clock
from gwtf_p2p.protocol.stall.rules import duration

EVENTS_LEAST, EVENTS_SHOWN = 3, 12


def own_view(own: OwnPeer, now: float, size: tuple[int, int]) -> list[Text]:
    """All lines for a terminal of `size` (columns, lines)."""
    width, height = size
    doing, is_well = own.doing(now)
    spark = sparkline(own.losses, max(8, width - 6))
    sections = [
        Section([_who(own, now)], 2),
        Section([Text(doing, style="" if is_well else "bold red")], 0),
        Section([_progress(own, width)] if own.run.get("total_iterations") and own.iterations else [], 3),
        Section([Text(own.copies, style="yellow")] if own.copies else [], 2),
        Section([Text(part) for part in own.contribution().split(" · ")], 1),
        Section([Text(f"loss {own.losses[-1]:.4f} after {own.iteration + 1} iterations")] if own.losses else [], 4),
        Section([Text(spark, style="cyan")] if own.losses else [], 6),
        Section([Text(_machine(own))] if own.figures else [], 5),
        Section(
            [Text(f"{clock(at)}  {text}") for at, text in reversed(own.events)], 3, EVENTS_LEAST, EVENTS_SHOWN,
            "what happened, newest first",
        ),
        Section([Text(f"others can join through {own.maddr}", style="dim")] if own.maddr else [], 7),
        Section([Text("Ctrl+C leaves: what is held is finished first; again: at once", style="dim")], 8),
    ]  # fmt: skip
    return fit(sections, width, height)


def _who(own: OwnPeer, now: float) -> Text:
    parts = [f"{own.role} {own.peer[-SHOWN:]}" if own.peer else own.role, *([f"run {own.run['run_id']}"] if own.run else [])]
    parts += [own.where] if own.where else []
    since = own.online_since or own.began
    parts.append(f"{'online' if own.online_since else 'starting'} for {duration(max(0.0, now - since))}")
    return Text(" · ".join(parts), style="bold")


def _progress(own: OwnPeer, width: int) -> Text:
    total, left = int(own.run["total_iterations"]), own.seconds_left
    words = f"iteration {own.iteration + 1}/{total} "
    ending = "" if left is None else f"  {duration(left)} left"
    bar = progress_bar(own.iteration + 1, total, width - len(words) - len(ending))
    return Text.assemble((words, "bold"), bar, ending)


def _machine(own: OwnPeer) -> str:
    kept, resident = int(own.figures.get("kept_bytes", 0)), int(own.figures.get("resident_bytes", 0))
    repaired = f", {own.recoveries} microbatches rescued from lost peers" if own.recoveries else ""
    return f"memory {megabytes(resident)}, of it {megabytes(kept)} for microbatches under way{repaired}"
