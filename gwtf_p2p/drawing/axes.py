"""Where an axis has its lines and how they are labelled: one rule, `static/axes.json`, for pictures drawn here and in browsers.

`steps` are the distances between two lines, up to a power of ten; `units` (from so much on, letter, divisor) shorten labels to
`digits` digits that count. The monitor's page is given the same rule (`monitor/page/static/axes.js`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, log10
from pathlib import Path

FILE = Path(__file__).parent / "static" / "axes.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """See the module."""

    steps: tuple[int, ...]
    units: tuple[tuple[float, str, float], ...]
    digits: int


@cache
def rule() -> Rule:
    """As the file says."""
    plain = json.loads(FILE.read_text())
    return Rule(tuple(plain["steps"]), tuple((a, b, c) for a, b, c in plain["units"]), plain["digits"])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values between two others, as many as `about` or fewer."""
    raw = ((high - low) or 1.0) / about
    power = 10.0 ** floor(log10(raw))
    step = next(step * power for step in rule().steps if step * power >= raw * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def label(value: float) -> str:
    """A value as its line says it."""
    for least, letter, divisor in rule().units:
        if abs(value) >= least:
            shown = value / divisor
            return f"{f'{shown:.0f}' if shown >= 100 else f'{shown:.{rule().digits}g}'} {letter}"
    return f"{value:g}" if value == int(value) else f"{float(f'{value:.{rule().digits}g}'):g}"
