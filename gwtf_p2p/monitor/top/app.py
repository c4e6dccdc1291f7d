"""The full-screen view: figures, findings, peers, events, and one peer's details, by keyboard."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Footer, Static

from gwtf_p2p.monitor.terminal.fit import progress_bar, sparkline
from gwtf_p2p.monitor.terminal.swarm_view import clock
from gwtf_p2p.monitor.top.shown import Peer, Shown
from gwtf_p2p.monitor.top.source import Source
from gwtf_p2p.protocol.stall.rules import duration

COLUMNS = ("peer", "stage", "state", "held", "work/min", "behind", "path")
SORTS = ("stage", "state", "work", "name")
LEVELS = {"alert": "bold red", "notice": "yellow", "ok": "green"}
FINDINGS_SHOWN = 3
NAME = 12
"""Most characters of a peer's name."""

EVENTS_SHOWN = 100
LISTED = ("all", "those in trouble")


class Top(App[None]):
    """Shows what `source` tells."""

    TITLE = "gwtf top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head, #findings, #loss, #about { height: auto; padding: 0 1; }
    #peers { height: 2fr; min-height: 4; }
    #events, #details { height: 1fr; min-height: 3; max-height: 14; border-top: solid $surface-lighten-2; padding: 0 1; }
    #details { display: none; height: 2fr; max-height: 100; }
    .detailed #details { display: block; }
    .detailed #events { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
        ("s", "sort", "Sort"),
        ("t", "trouble", "Trouble"),
        ("n", "next_run", "Run"),
        ("d", "details", "Details"),
        ("escape", "close_details", "Back"),
    ]

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.runs: dict[str, tuple[Shown, list[float]]] = {}
        self.run_id = ""
        self.sort_by, self.only_trouble = SORTS[0], False
        self.trouble = ""
        self._stop = threading.Event()
        self._cells: dict[str, tuple[Text, ...]] = {}

    def compose(self) -> ComposeResult:
        yield Static("looking for the run …", id="head", markup=False)
        yield Static("", id="findings")
        yield Static("", id="loss")
        yield DataTable(id="peers", cursor_type="row", zebra_stripes=True)
        yield Static("", id="about", markup=False)
        yield VerticalScroll(Static("", id="happened"), id="events")
        yield VerticalScroll(Static("", id="known"), id="details")
        yield Footer()

    def on_mount(self) -> None:
        """The source is read in a thread: it may block for as long as a network does."""
        for column in COLUMNS:
            self.table.add_column(column, key=column)
        self.table.focus()
        for number in (signal.SIGINT, signal.SIGTERM):  # from outside; the key arrives as a key
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.run_worker(self._watch, thread=True, exclusive=True, name="source")

    def on_unmount(self) -> None:
        self._stop.set()

    @property
    def table(self) -> DataTable[Text]:
        """The peers."""
        return self.query_one("#peers", DataTable)

    # ---- the source's thread

    def _watch(self) -> None:
        def look(state: Shown, losses: list[float]) -> None:
            if not self._stop.is_set():
                self.call_from_thread(self.take, state, losses)

        def trouble(text: str) -> None:
            if not self._stop.is_set():
                self.call_from_thread(self.tell_trouble, text)

        self.source.watch(look, trouble, self._stop)

    def take(self, state: Shown, losses: list[float]) -> None:
        """A run as it is now."""
        is_new = state.run_id not in self.runs
        self.runs[state.run_id] = state, losses
        self.run_id = self.run_id or state.run_id
        if is_new or state.run_id == self.run_id:
            self.draw()

    def tell_trouble(self, text: str) -> None:
        """Why nothing new is seen."""
        if text != self.trouble:
            self.trouble = text
            self.draw()

    # ---- drawing

    def draw(self) -> None:
        """Everything, of the run that is chosen."""
        if not self.run_id:
            self.query_one("#head", Static).update(self.trouble or "looking for the run …")
            return
        state, losses = self.runs[self.run_id]
        width = max(20, self.size.width - 2)
        self.query_one("#head", Static).update(_head(state, len(self.runs), width))
        found = [Text(self.trouble, style="bold red")] if self.trouble else []
        found += [Text(f.text, style=LEVELS.get(f.level, "")) for f in state.findings[:FINDINGS_SHOWN]]
        self.query_one("#findings", Static).update(Text("\n").join(found))
        spark = Text.assemble("loss ", (sparkline(losses, width - 5), "cyan")) if losses else Text("no loss is known yet")
        self.query_one("#loss", Static).update(spark)
        events = [f"{clock(change.at)}  {change.text}" for change in reversed(state.changes[-EVENTS_SHOWN:])]
        self.query_one("#happened", Static).update(Text("\n".join(events) or "nothing has happened yet", overflow="ellipsis"))
        self._draw_peers(state)

    def _draw_peers(self, state: Shown) -> None:
        """Only what has changed: of thousands of rows few do."""
        table = self.table
        listed = sorted((p for p in state.peers if not (self.only_trouble and p.is_well)), key=self._key)
        cells = {peer.peer: _cells(peer) for peer in listed}
        if list(cells) != list(self._cells):
            self._fill(cells)
        else:
            for peer, row in cells.items():
                for column, old, new in zip(COLUMNS, self._cells[peer], row, strict=True):
                    if old != new:
                        table.update_cell(peer, column, new)
        self._cells = cells
        which = LISTED[self.only_trouble]
        self.query_one("#about", Static).update(f"{len(listed)} peers, {which}; sorted by {self.sort_by}; work: microbatches")

    def _fill(self, cells: Mapping[str, tuple[Text, ...]]) -> None:
        """All rows anew; the cursor stays on its peer."""
        table = self.table
        chosen = self._chosen()
        table.clear()
        for peer, row in cells.items():
            table.add_row(*row, key=peer)
        if chosen in cells:
            table.move_cursor(row=list(cells).index(chosen))

    def _chosen(self) -> str:
        """The peer under the cursor; nothing in an empty table."""
        table = self.table
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value) if table.row_count else ""

    def _key(self, peer: Peer) -> tuple[Any, ...]:
        work = -(peer.microbatches_per_s or 0.0)
        by = {
            "stage": (peer.stage, peer.name),
            "state": (peer.is_well, peer.state, peer.stage, peer.name),
            "work": (work, peer.stage, peer.name),
            "name": (peer.name,),
        }
        return (*by[self.sort_by], peer.peer)

    # ---- keys

    def action_sort(self) -> None:
        """By the next of `SORTS`."""
        self.sort_by = SORTS[(SORTS.index(self.sort_by) + 1) % len(SORTS)]
        self._again()

    def action_trouble(self) -> None:
        """Only peers that take no microbatches, or everybody again."""
        self.only_trouble = not self.only_trouble
        self._again()

    def action_next_run(self) -> None:
        ids = sorted(self.runs)
        if ids:
            self.run_id = ids[(ids.index(self.run_id) + 1) % len(ids)]
            self.action_close_details()
            self._again()

    def action_details(self) -> None:
        """Of the peer under the cursor; asked for in a thread, for the answer may come over a network."""
        peer, run_id = self._chosen(), self.run_id
        if not peer:
            return
        self.screen.add_class("detailed")
        self.query_one("#known", Static).update(f"asking for {peer} …")

        def ask() -> None:
            found = self.source.details(run_id, peer)
            if not self._stop.is_set():
                self.call_from_thread(self.query_one("#known", Static).update, details_text(peer, found))

        self.run_worker(ask, thread=True, group="details", exclusive=True)

    def on_data_table_row_selected(self, _: DataTable.RowSelected) -> None:
        """Enter on a row."""
        self.action_details()

    def action_close_details(self) -> None:
        """The details give way to the events."""
        self.screen.remove_class("detailed")

    def _again(self) -> None:
        if self.run_id:
            self.draw()


def _head(state: Shown, runs: int, width: int) -> Text:
    """The three lines at the top."""
    others = f"  ({runs} runs: n)" if runs > 1 else ""
    loss = f"loss {state.loss:.4f}" if state.loss is not None else "no loss yet"
    held_out = f"  held out {state.held_out_loss:.4f}" if state.held_out_loss is not None else ""
    figures = f"{loss}{held_out}  {state.tokens_per_second:.0f} tokens/s  {state.peers_online}/{state.peers_seen} online"
    lines = [
        Text(f"{state.run_id} · router {state.router}{others} · {clock(state.seen_at)}", style="bold"),
        Text(figures),
        _progress(state, width),
    ]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)


def _progress(state: Shown, width: int) -> Text:
    if not state.total_iterations:
        return Text(f"iteration {state.iterations}, no end is set")
    words = f"iteration {state.iterations}/{state.total_iterations} "
    left = "" if state.seconds_left is None else f"  {duration(state.seconds_left)} left"
    return Text.assemble(words, progress_bar(state.iterations, state.total_iterations, width - len(words + left)), left)


def _cells(peer: Peer) -> tuple[Text, ...]:
    state = "silent" if peer.is_silent else peer.state.lower()
    rate = "" if peer.microbatches_per_s is None else f"{60 * peer.microbatches_per_s:.1f}"
    texts = (
        peer.name[:NAME],
        "data" if peer.role == "data" else str(peer.stage),
        state,
        f"{peer.occupancy}/{peer.capacity}",
        rate,
        str(peer.behind or ""),
        peer.path,
    )
    return tuple(Text(text, style="" if peer.is_well else "red") for text in texts)


def details_text(peer: str, found: Mapping[str, Any] | None) -> Text:
    """What is known of a peer, a line for each field; lists and tables in lines of their own."""
    if found is None:
        return Text(f"{peer}: nothing more is known")
    lines = []
    for name, value in found.items():
        if value in (None, [], {}, ""):
            continue
        words = name.replace("_", " ")
        if isinstance(value, list):
            lines.append(f"{words}:")
            lines += [f"  {_short(item)}" for item in value[:40]]
        else:
            lines.append(f"{words}: {_short(value)}")
    return Text("\n".join(lines))


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k} {_short(v)}" for k, v in list(value.items())[:20] if v is not None)[:400]
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:400]
