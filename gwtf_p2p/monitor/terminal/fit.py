"""A view is made of sections; where a terminal is too small for all of them, the less important give way.

A section gets its fewest lines, or nothing; what is left then goes to the sections in the order of their importance. Nothing
wraps: a line that is too long ends in an ellipsis, and a table leaves out its less important columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
GAP = 2
"""Blanks between two columns."""


@dataclass(frozen=True, slots=True)
class Section:
    """`lines`, the most important first; `importance` 0 gives way last. `least` lines or none are shown, at most `most`.

    `title` takes a line of its own. `rest`: what the lines are of, so that the last one can say how many more there are.
    `compact`: shown instead where there is no room for all of `lines`.
    """

    lines: Sequence[Text]
    importance: int
    least: int = 1
    most: int = 1000
    title: str = ""
    rest: str = ""
    compact: Sequence[Text] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `table`. Those of the greatest `importance` number are left out first; numbers are set to the right."""

    head: str
    importance: int = 0
    is_number: bool = False


def fit(sections: Sequence[Section], width: int, height: int) -> list[Text]:
    """At most `height` lines of at most `width` cells: the sections in the order given, as far as there is room."""
    ranked = sorted((s for s in sections if s.lines), key=lambda s: s.importance)
    room, given = height, {}
    for section in ranked:
        needed = min(section.least, len(section.lines)) + bool(section.title)
        if needed <= room:
            given[id(section)] = needed - bool(section.title)
            room -= needed
    for section in ranked:
        if id(section) in given:
            more = min(min(len(section.lines), section.most) - given[id(section)], room)
            given[id(section)] += more
            room -= more
    shown: list[Text] = []
    for section in sections:
        if id(section) in given:
            shown += [_rule(section.title, width)] if section.title else []
            shown += _shown(section, given[id(section)])
    for line in shown:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return shown


def _shown(section: Section, room: int) -> list[Text]:
    lines = section.lines
    if len(lines) > room and section.compact:
        lines = section.compact
    if len(lines) > room and section.rest and room > 1:
        more = Text(f"… {len(lines) - room + 1} more {section.rest}", style="dim")
        return [*(line.copy() for line in lines[: room - 1]), more]
    return [line.copy() for line in lines[:room]]


def _rule(title: str, width: int) -> Text:
    return Text(f"── {title} ".ljust(width, "─"), style="dim")


def table(columns: Sequence[Column], rows: Sequence[tuple[Sequence[str], str]], width: int) -> list[Text]:
    """A line of headings and one for each row (cells and a style), without the columns for which there is no room."""
    kept = list(range(len(columns)))
    widths = [max(len(c.head), *(len(cells[i]) for cells, _ in rows), 0) for i, c in enumerate(columns)]
    while len(kept) > 1 and sum(widths[i] + GAP for i in kept) - GAP > width:
        kept.remove(max(kept, key=lambda i: (columns[i].importance, i)))

    def line(cells: Sequence[str], style: str) -> Text:
        set_ = (cells[i].rjust(widths[i]) if columns[i].is_number else cells[i].ljust(widths[i]) for i in kept)
        return Text((" " * GAP).join(set_).rstrip(), style=style)

    return [line([c.head for c in columns], "bold"), *(line(cells, style) for cells, style in rows)]


def progress_bar(done: int, total: int, width: int) -> Text:
    """How much of a whole is done, as a bar and per cent."""
    share = min(1.0, done / total) if total > 0 else 0.0
    room = max(4, width - 5)
    full = int(room * share)
    return Text.assemble(("━" * full, "green"), ("─" * (room - full), "dim"), f" {share:4.0%}")


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """The last values as a row of bars, lowest to highest."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))] for value in shown)
