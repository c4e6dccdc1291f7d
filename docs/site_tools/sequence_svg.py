"""Sequence diagrams in mermaid's notation as SVG, drawn when the site is built, so that a reader's browser fetches nothing.

Drawn is what the pages use, and any other line is an error that names it:

    sequenceDiagram
        participant X as a name
        X->>Y: a message        X-->>Y: an answer        X->>X: something that X does
        Note over X: a remark   Note over X,Y: a remark

Sizes are in pixels of the SVG; text is taken to be `CHARACTER` wide per character, which is on the safe side for sans-serif.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from itertools import pairwise

CHARACTER = 6.9
FONT = 13
ROW, HEAD, MARGIN = 34, 40, 16
LEAST_GAP = 120
LOOP = 26

_PARTICIPANT = re.compile(r"participant (\w+)(?: as (.+))?")
_MESSAGE = re.compile(r"(\w+)(-->>|->>)(\w+): (.+)")
_NOTE = re.compile(r"Note over (\w+)(?:,(\w+))?: (.+)")


@dataclass(frozen=True, slots=True)
class _Step:
    """A row of the diagram: from one participant to another (columns from 0), or a note over both."""

    first: int
    last: int
    text: str
    is_note: bool = False
    is_answer: bool = False


def render(source: str) -> str:
    """The diagram as an SVG element. Raises ValueError that quotes a line which is not of the notation above."""
    names, steps = _parse(source)
    columns = _columns(names, steps)
    width = columns[-1] + max(_width(names[-1]) / 2, _right_of_last(len(names) - 1, steps)) + MARGIN
    height = HEAD + ROW * (len(steps) + 1) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" style="max-width:{width:.0f}px" '
        f'width="100%" font-family="Helvetica, Arial, sans-serif" font-size="{FONT}" role="img">',
        "<title>" + escape("; ".join(step.text for step in steps)) + "</title>",
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for name, x in zip(names, columns, strict=True):
        half = _width(name) / 2
        parts.append(f'<line x1="{x:.0f}" y1="{HEAD}" x2="{x:.0f}" y2="{height - 8}" stroke="#9ca3af" stroke-dasharray="3 4"/>')
        box = f'x="{x - half:.0f}" y="8" width="{2 * half:.0f}" height="28" rx="6"'
        parts.append(f'<rect {box} fill="#dbeafe" stroke="#1d4ed8"/>{_text(x, 27, name, "middle")}')
    for row, step in enumerate(steps):
        parts.append(_draw(step, columns, HEAD + ROW * (row + 1)))
    return "\n".join([*parts, "</svg>"])


def _parse(source: str) -> tuple[list[str], list[_Step]]:
    keys: dict[str, int] = {}
    names: list[str] = []
    steps: list[_Step] = []
    lines = [line.strip() for line in source.strip().splitlines() if line.strip()]
    if not lines or lines[0] != "sequenceDiagram":
        raise ValueError(f"expected sequenceDiagram, got {lines[:1]}")
    for line in lines[1:]:
        if found := _PARTICIPANT.fullmatch(line):
            keys[found[1]] = len(names)
            names.append(found[2] or found[1])
        elif (found := _MESSAGE.fullmatch(line)) and {found[1], found[3]} <= keys.keys():
            steps.append(_Step(keys[found[1]], keys[found[3]], found[4], is_answer=found[2] == "-->>"))
        elif (found := _NOTE.fullmatch(line)) and {found[1], found[2] or found[1]} <= keys.keys():
            ends = sorted((keys[found[1]], keys[found[2] or found[1]]))
            steps.append(_Step(ends[0], ends[1], found[3], is_note=True))
        else:
            raise ValueError(f"not a line of a sequence diagram that this site draws: {line!r}")
    return names, steps


def _columns(names: list[str], steps: list[_Step]) -> list[float]:
    """Where each participant's line stands: as near to the one before as texts and boxes allow."""
    gaps = [max(LEAST_GAP, (_width(a) + _width(b)) / 2 + 12) for a, b in pairwise(names)]
    left = _width(names[0]) / 2
    for step in steps:
        low, high = sorted((step.first, step.last))
        if low != high:
            need = (len(step.text) * CHARACTER + 30) / (high - low)
            gaps[low:high] = [max(gap, need) for gap in gaps[low:high]]
        elif step.is_note:
            half = _width(step.text) / 2
            left = max(left, half) if low == 0 else left
            if low < len(gaps):
                gaps[low] = max(gaps[low], half + 14)
            if low > 0:
                gaps[low - 1] = max(gaps[low - 1], half + 14)
        elif low < len(gaps):
            gaps[low] = max(gaps[low], len(step.text) * CHARACTER + LOOP + 20)
    columns = [MARGIN + left]
    for gap in gaps:
        columns.append(columns[-1] + gap)
    return columns


def _right_of_last(last: int, steps: list[_Step]) -> float:
    """How far texts reach to the right of the last participant's line."""
    loops = [len(s.text) * CHARACTER + LOOP + 10 for s in steps if s.first == s.last == last and not s.is_note]
    notes = [_width(s.text) / 2 for s in steps if s.is_note and s.first == s.last == last]
    return max([0.0, *loops, *notes])


def _draw(step: _Step, columns: list[float], y: int) -> str:
    x1, x2 = columns[step.first], columns[step.last]
    if step.is_note:
        half = max(_width(step.text), x2 - x1 + 40) / 2
        middle = (x1 + x2) / 2
        box = f'x="{middle - half:.0f}" y="{y - 12}" width="{2 * half:.0f}" height="24"'
        return f'<rect {box} fill="#fef3c7" stroke="#b45309"/>{_text(middle, y + 4, step.text, "middle")}'
    stroke = 'fill="none" stroke="#111827" stroke-width="1.4"' + (' stroke-dasharray="5 4"' if step.is_answer else "")
    if step.first == step.last:
        path = f'<path d="M{x1:.0f} {y - 8} h{LOOP - 6} v14 h{8 - LOOP}" {stroke}/>'
        return path + _head(x1 + 1, y + 6, -1) + _text(x1 + LOOP, y + 4, step.text, "start")
    way = 1 if x2 > x1 else -1
    line = f'<line x1="{x1:.0f}" y1="{y + 6}" x2="{x2 - way:.0f}" y2="{y + 6}" {stroke}/>'
    return line + _head(x2 - way, y + 6, way) + _text((x1 + x2) / 2, y, step.text, "middle")


def _head(x: float, y: float, way: int) -> str:
    return f'<path d="M{x:.0f} {y:.0f} l{-8 * way} -4 v8 z" fill="#111827"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#111827">{escape(text)}</text>'


def _width(text: str) -> float:
    return len(text) * CHARACTER + 24
