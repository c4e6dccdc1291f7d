"""One iteration as an animation: a self-contained HTML file that plays, stops and steps through it, and loads nothing.

Peers stand in columns by stage; a peer that computes is filled in the colour of its work, a transfer is a dot that travels.
Below is the same iteration as a Gantt chart, with the moment that is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from gwtf_p2p.drawing.axes import label, ticks

COLOURS = {
    "forward": "#4c8bd6", "backward": "#d9822b", "embed": "#7fb2e5", "loss": "#8e5bb5", "finish": "#e8b27a",
    "uncount": "#c0392b", "recount": "#c0392b", "average": "#4f9d69",
}  # fmt: skip
"""By work, in every chart of time."""

LINES = 8
"""Of the time axis, about."""

MOST_BARS = 50_000
"""A browser draws no more smoothly."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that took time: `peer` did `what` for microbatch `about`, or sent it to `to`. Seconds of one clock."""

    peer: str
    what: str
    about: str
    began: float
    ended: float
    to: str = ""


@dataclass(frozen=True, slots=True)
class Iteration:
    """The bars of one iteration, from 0.0 on. `stages`: where each peer stands (0: data peers)."""

    number: int
    bars: tuple[Bar, ...]
    stages: Mapping[str, int]


def iterations_of(bars: Sequence[Bar]) -> list[int]:
    """The numbers of the iterations that the bars are of."""
    return sorted({number for bar in bars if (number := iteration_number(bar.about)) is not None})


def iteration_number(about: str) -> int | None:
    """Of `DATA PEER/ITERATION/INDEX` and `iteration N`; None of anything else."""
    parts = about.split("/")
    text = parts[1] if len(parts) == 3 else about.removeprefix("iteration ") if about.startswith("iteration ") else ""
    return int(text) if text.isdecimal() else None


def iteration(bars: Sequence[Bar], stages: Mapping[str, int], number: int) -> Iteration:
    """The bars of one iteration, moved to begin at 0; of peers whose stage is not known nothing is shown."""
    own = [bar for bar in bars if iteration_number(bar.about) == number and bar.peer in stages]
    own = [bar for bar in own if not bar.to or bar.to in stages]
    first = min((bar.began for bar in own), default=0.0)
    moved = sorted(
        (Bar(b.peer, b.what, b.about, b.began - first, b.ended - first, b.to) for b in own),
        key=lambda b: (b.began, b.peer, b.about),
    )
    seen = {peer for bar in moved for peer in (bar.peer, bar.to) if peer}
    return Iteration(number, tuple(moved[:MOST_BARS]), {peer: stage for peer, stage in stages.items() if peer in seen})


def replay_html(shown: Iteration, title: str) -> str:
    """The file."""
    peers = sorted(shown.stages, key=lambda peer: (shown.stages[peer], peer))
    number = {peer: i for i, peer in enumerate(peers)}
    abouts = sorted({bar.about for bar in shown.bars})
    index = {about: i for i, about in enumerate(abouts)}
    bars = [
        [number[b.peer], b.what, index[b.about], round(b.began, 4), round(b.ended, 4), number[b.to] if b.to else None]
        for b in shown.bars
    ]
    seconds = max((b.ended for b in shown.bars), default=0.0)
    plain = {
        "peers": [[peer, shown.stages[peer]] for peer in peers],
        "abouts": abouts,
        "bars": bars,
        "seconds": seconds,
        "ticks": [(tick, label(tick)) for tick in ticks(0.0, seconds, LINES)],
        "colours": COLOURS,
    }
    # `<` cannot end the script element, and a name is data, never markup.
    data = json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c")
    static = files("gwtf_p2p.drawing") / "static"
    fields = {
        "title": escape(f"{title}, iteration {shown.number}"),
        "style": (static / "replay.css").read_text("utf-8"),
        "script": (static / "replay.js").read_text("utf-8"),
        "data": data,
    }
    page = (static / "replay.html").read_text("utf-8")
    for name, text in fields.items():
        page = page.replace(f"{{{{{name}}}}}", text)
    return page
