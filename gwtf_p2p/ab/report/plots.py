"""The report's pictures: iteration times, loss over time, one iteration as a Gantt chart, the flows over the peers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import median

from gwtf_p2p.ab.report.statistics import ArmSummary
from gwtf_p2p.ab.trials.gantt import Row
from gwtf_p2p.ab.trials.result import RunResult
from gwtf_p2p.drawing.axes import label
from gwtf_p2p.drawing.replay import COLOURS
from gwtf_p2p.drawing.svg import BLUE, GREY, INK, LIGHT, PALETTE, Drawing, Scale

WIDTH, LEFT, RIGHT = 1040, 300, 60
ROW, HEAD = 22, 36


def iteration_times(summaries: Sequence[ArmSummary]) -> str:
    """A block per scenario, a row per arm: a dot per seed, the median as a bar, its interval, and the bound as a ring."""
    blocks = list(dict.fromkeys(s.scenario for s in summaries))
    drawing = Drawing(WIDTH, len(blocks) * HEAD + len(summaries) * ROW + 40)
    most = 1.03 * max(max(s.iteration_s.values) for s in summaries)
    scale = Scale(0.0, most, LEFT, WIDTH - RIGHT)
    bottom = drawing.height - 24
    for tick in scale.ticks():
        drawing.line((scale.at(tick), 12), (scale.at(tick), bottom), LIGHT)
        drawing.text((scale.at(tick), bottom + 14), f"{label(tick)} s", GREY, "middle")
    y = 4.0
    for scenario in blocks:
        y += HEAD
        rows = [s for s in summaries if s.scenario == scenario]
        told = f"{scenario}  (right: ratio over {rows[0].baseline or 'nothing'})"
        drawing.text((10, y - 14), told, INK, bold=True, room=WIDTH - 20)
        for s in rows:
            _iteration_row(drawing, s, y, scale)
            y += ROW
    return drawing.done()


def _iteration_row(drawing: Drawing, s: ArmSummary, y: float, scale: Scale) -> None:
    time = s.iteration_s
    drawing.text((20, y + 4), s.arm, BLUE if s.arm == s.baseline else INK, room=LEFT - 30)
    drawing.dot((scale.at(median(r.bound_iteration_s for r in s.runs)), y), 4, GREY, hollow=True)
    if time.interval is not None:
        drawing.line((scale.at(time.interval.low), y), (scale.at(time.interval.high), y), INK, 2)
    for value in time.values:
        drawing.dot((scale.at(value), y), 3, BLUE, opacity=0.5)
    drawing.line((scale.at(time.middle), y - 7), (scale.at(time.middle), y + 7), INK, 3)
    if s.ratio is not None:
        drawing.text((WIDTH - 6, y + 4), f"{s.ratio.middle:.2f}", INK, "end")


def _seconds(run: RunResult) -> list[float]:
    return list(accumulate(run.iteration_s))


def _tokens(run: RunResult) -> list[float]:
    return [float(number * run.tokens_per_iteration) for number in range(1, len(run.iteration_s) + 1)]


Over = tuple[Callable[[RunResult], list[float]], str]
"""Where each iteration of a run ends on an axis, and the axis' unit."""

LOSS_OVER: dict[str, Over] = {"time": (_seconds, "s"), "tokens": (_tokens, "tokens")}


def loss_curves(runs: Sequence[RunResult], title: str, over: Over) -> str:
    """A line per arm, from its first committed iteration on; runs of one scenario and seed."""
    ends, unit = over
    height = max(340, 60 + 18 * len(runs))
    drawing = Drawing(WIDTH, height)
    losses = [loss for run in runs for loss in run.losses]
    right = WIDTH - 270
    across = Scale(0.0, max(ends(run)[-1] for run in runs), 60, right)
    down = Scale(min(losses), max(losses), height - 40, 36)
    drawing.text((60, 20), title, INK, bold=True, room=WIDTH - 70)
    for tick in across.ticks():
        drawing.line((across.at(tick), 36), (across.at(tick), height - 40), LIGHT)
        drawing.text((across.at(tick), height - 22), f"{label(tick)} {unit}", GREY, "middle")
    for tick in down.ticks():
        drawing.line((60, down.at(tick)), (right, down.at(tick)), LIGHT)
        drawing.text((52, down.at(tick) + 4), label(tick), GREY, "end")
    for number, run in enumerate(runs):
        colour = PALETTE[number % len(PALETTE)]
        points = [(across.at(end), down.at(loss)) for end, loss in zip(ends(run), run.losses, strict=False)]
        drawing.path(points, colour)
        for point in points:
            drawing.dot(point, 2, colour)
        drawing.line((right + 16, 46 + number * 18), (right + 36, 46 + number * 18), colour, 3)
        drawing.text((right + 42, 50 + number * 18), run.arm, room=WIDTH - right - 46)
    return drawing.done()


def gantt(seconds: float, rows: Sequence[Row], title: str, most_s: float) -> str:
    """One iteration: a band per peer, its computations as boxes, what it sends as thin lines below. `most_s`: the axis' end."""
    peers = sorted({row.peer for row in rows}, key=_place)
    left, band = 90, 26
    drawing = Drawing(WIDTH, len(peers) * band + 84)
    across = Scale(0.0, most_s, left, WIDTH - 12)
    drawing.text((10, 18), title, INK, bold=True, room=WIDTH - 20)
    bottom = 34 + len(peers) * band
    for tick in across.ticks(10):
        drawing.line((across.at(tick), 30), (across.at(tick), bottom), LIGHT)
        drawing.text((across.at(tick), bottom + 14), f"{label(tick)} s", GREY, "middle")
    drawing.line((across.at(seconds), 28), (across.at(seconds), bottom + 2), INK, 2)
    for number, peer in enumerate(peers):
        y = 34.0 + number * band
        drawing.text((left - 8, y + 13), peer, INK, "end", room=left - 12)
        drawing.line((left, y + band - 3), (WIDTH - 12, y + band - 3), LIGHT)
        _gantt_band(drawing, [row for row in rows if row.peer == peer], y, across)
    for i, kind in enumerate(("forward", "backward", "embed", "loss", "finish", "average")):
        drawing.box((left + i * 110, bottom + 24), (12, 10), COLOURS[kind])
        drawing.text((left + i * 110 + 17, bottom + 33), kind, GREY)
    drawing.text((WIDTH - 12, bottom + 33), "thin: transfers out; black line: the end", GREY, "end")
    return drawing.done()


def _gantt_band(drawing: Drawing, rows: Sequence[Row], y: float, across: Scale) -> None:
    lanes: list[float] = []
    for row in sorted(rows, key=lambda r: (r.began, r.ended)):
        x, width = across.at(row.began), max(0.6, across.at(row.ended) - across.at(row.began))
        colour = COLOURS.get(row.what, GREY)
        told = f"{row.what} {row.about}{' to ' + row.to if row.to else ''}: {row.began:.2f}-{row.ended:.2f} s"
        if not row.to:
            drawing.box((x, y), (width, 12), colour, told)
            continue
        lane = next((i for i, free in enumerate(lanes) if free <= row.began), len(lanes))
        lanes[lane : lane + 1] = [row.ended]
        drawing.box((x, y + 14 + min(lane, 3) * 2.2), (width, 1.6), colour, told, 0.8)


def flows(run: RunResult, title: str) -> str:
    """Peers by stage; a line's width is the number of microbatches that went that way."""
    edges: Counter[tuple[str, str]] = Counter()
    for route, count in run.routes.items():
        stage_peers = route.split(" > ")
        for a, b in zip(["out", *stage_peers], [*stage_peers, "in"], strict=True):
            edges[a, b] += count
    stages: dict[int, list[str]] = {}
    for peer in sorted({p for transport in edges for p in transport} - {"out", "in"}, key=_place):
        stages.setdefault(_place(peer)[0], []).append(peer)
    columns = [["out"], *(stages[k] for k in sorted(stages)), ["in"]]
    tallest = max(len(column) for column in columns)
    drawing = Drawing(WIDTH, tallest * 46 + 60)
    at: dict[str, tuple[float, float]] = {}
    for i, column in enumerate(columns):
        for j, peer in enumerate(column):
            x = 70 + i * (WIDTH - 140) / (len(columns) - 1)
            at[peer] = (x, 50 + (j + 0.5) * tallest * 46 / len(column))
    most = max(edges.values())
    for (a, b), count in sorted(edges.items(), key=lambda item: item[1]):
        drawing.line(at[a], at[b], BLUE, 0.8 + 13 * count / most, 'stroke-opacity="0.45" stroke-linecap="round"')
    through = Counter({peer: sum(n for (_, b), n in edges.items() if b == peer) for peer in at})
    for peer, place in at.items():
        drawing.dot(place, 7, INK, hollow=True)
        words = "data peers" if peer in ("out", "in") else f"{peer}: {through[peer]}"
        drawing.text((place[0], place[1] - 12), words, INK, "middle")
    drawing.text((10, 20), title, INK, bold=True, room=WIDTH - 20)
    return drawing.done()


def _place(peer: str) -> tuple[int, int, str]:
    """Data peers first, stage peers by stage and number."""
    numbers = [int(n) for n in re.findall(r"\d+", peer)]
    if peer.startswith("data") or not numbers:
        return 0, numbers[0] if numbers else 0, peer
    return numbers[0], numbers[-1], peer
