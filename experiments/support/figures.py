"""Draws a comparison as SVG, without a drawing library.

    python -m experiments.support.figures results.jsonl --baseline 'swarm*' --out ratios.svg

One block per scenario, one row per arm: a dot per seed at the arm's iteration time over the baseline's of the same seed, the
median as a bar, its 95 % interval as a line (see `compare`), and hollow where the bound would be: no router can be left of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

from experiments.compare import Comparison, Line, compare, group

WIDTH, LEFT, RIGHT, ROW, HEAD = 960, 420, 40, 22, 34
INK, GREY, BLUE = "#222222", "#9a9a9a", "#1f5fa8"


def svg(comparisons: Sequence[Comparison], lines: Sequence[Line]) -> str:
    """The whole drawing. Ratios from 0 to a little over the largest."""
    runs = {(group(line), line["arm"], line["seed"]): line for line in lines}
    rows = [(c, _Ratios.of(c, runs)) for c in comparisons]
    most = 1.05 * max(max(ratios.of_seeds) for _, ratios in rows)
    parts: list[str] = []
    y, scenario = 10.0, ""
    for c, ratios in rows:
        if c.scenario != scenario:
            scenario = c.scenario
            y += HEAD
            parts.append(_text(10, y - 10, f"{scenario}   (1 = {c.baseline}, {len(c.seeds)} seeds)", INK, bold=True))
        parts += _row(c, ratios, y, most)
        y += ROW
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0f}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Of one arm's runs, and of the median bound, over the baseline's runs of the same seeds."""

    of_seeds: tuple[float, ...]
    of_bound: float

    @staticmethod
    def of(c: Comparison, runs: Mapping[tuple[str, str, int], Line]) -> _Ratios:
        base = [runs[c.scenario, c.baseline, seed]["mean_iteration_seconds"] for seed in c.seeds]
        mine = [runs[c.scenario, c.arm, seed] for seed in c.seeds]
        return _Ratios(
            tuple(line["mean_iteration_seconds"] / b for line, b in zip(mine, base, strict=True)),
            median(line["bound_iteration_seconds"] / b for line, b in zip(mine, base, strict=True)),
        )


def _row(c: Comparison, ratios: _Ratios, y: float, most: float) -> list[str]:
    def x(ratio: float) -> str:
        return f"{LEFT + ratio / most * (WIDTH - LEFT - RIGHT):.1f}"

    one = f'<line x1="{x(1)}" x2="{x(1)}" y1="{y - 9:.1f}" y2="{y + 11:.1f}" stroke="{GREY}" stroke-dasharray="2 2"/>'
    span = f'<line x1="{x(c.low)}" x2="{x(c.high)}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-width="2"/>'
    dots = [f'<circle cx="{x(r)}" cy="{y:.1f}" r="3" fill="{BLUE}" fill-opacity="0.45"/>' for r in ratios.of_seeds]
    bound = f'<circle cx="{x(ratios.of_bound)}" cy="{y:.1f}" r="4" fill="none" stroke="{GREY}"/>'
    middle = f'<line x1="{x(c.ratio)}" x2="{x(c.ratio)}" y1="{y - 7:.1f}" y2="{y + 7:.1f}" stroke="{INK}" stroke-width="3"/>'
    name = _text(20, y + 5, c.arm, BLUE if c.arm == c.baseline else INK)
    return [name, one, span, *dots, bound, middle, _text(WIDTH - 6, y + 5, f"{c.ratio:.2f}", INK, anchor="end")]


def _text(x: float, y: float, words: str, colour: str, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--baseline", default="swarm*")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    flags = parser.parse_args(arguments)
    lines = [json.loads(text) for text in flags.results.read_text().splitlines()]
    try:
        drawing = svg(compare(lines, flags.baseline), lines)
    except ValueError as error:
        print(f"{flags.results}: {error}", file=sys.stderr)
        return 2
    flags.out.write_text(drawing, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
