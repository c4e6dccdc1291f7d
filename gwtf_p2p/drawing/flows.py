"""Flows stage by stage: a column for each stage, a box for each peer, a line for each hop as wide as what goes over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gwtf_p2p.drawing.svg import BOLD_WIDTH, GREY, INK, LETTER_WIDTH, LIGHT, PALETTE, Drawing

COLUMN, ROW, BOX_WIDTH, BOX_HEIGHT, TOP = 190.0, 58.0, 116.0, 38.0, 84.0
LEAST_WIDTH, MOST_WIDTH = 1.5, 14.0
WIDEST_NAME = 16

Route = tuple[str, ...]
"""A data peer, a peer of each stage in their order, and the data peer again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer stands (0: data peers), and how many microbatches it can hold at once; None: not known."""

    stage: int
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Flows:
    """`routes`: microbatches by the way they go. `places`: all peers, also those that no flow goes over."""

    stages: int
    routes: Mapping[Route, int]
    places: Mapping[str, Place]
    title: str
    notes: Sequence[str] = field(default=())


def flow_picture(flows: Flows) -> str:
    """The picture as SVG. A data peer's colour is that of its flows."""
    columns = _columns(flows)
    tallest = max(len(column) for column in columns)
    below = 18.0 * len(flows.notes) + 16
    text_width = max([BOLD_WIDTH * len(flows.title), *(LETTER_WIDTH * len(note) for note in flows.notes)])
    wide = max(COLUMN * (len(columns) - 1) + BOX_WIDTH + 60, text_width + 40)
    drawing = Drawing(wide, TOP + tallest * ROW + 20 + below)
    drawing.text((20, 28), flows.title, INK, bold=True)
    at = _positions(columns, tallest)
    names = ["data peers", *(f"stage {k}" for k in range(1, flows.stages + 1)), "data peers"]
    for number, name in enumerate(names):
        drawing.text((30 + BOX_WIDTH / 2 + number * COLUMN, TOP - 22), name, GREY, "middle")
    sources = [peer for peer, place in flows.places.items() if place.stage == 0]
    colours = {peer: PALETTE[i % len(PALETTE)] for i, peer in enumerate(sorted(sources))}
    hops, through = _hops(flows.routes)
    most = max(hops.values(), default=1)
    for (number, a, b, source), count in sorted(hops.items(), key=lambda item: (item[1], item[0])):
        width = LEAST_WIDTH + (MOST_WIDTH - LEAST_WIDTH) * count / most
        start, end = at[number, a], at[number + 1, b]
        told = f"{a} to {b}: {count} of {source}"
        drawing.curve((start[0] + BOX_WIDTH / 2, start[1]), (end[0] - BOX_WIDTH / 2, end[1]), colours[source], width, told)
    for (number, peer), place in at.items():
        _box(drawing, place, peer, flows.places[peer], through[number, peer], colours.get(peer, INK))
    for number, note in enumerate(flows.notes):
        drawing.text((20, TOP + tallest * ROW + 30 + 18 * number), note, GREY)
    return drawing.done()


def _columns(flows: Flows) -> list[list[str]]:
    by_stage: list[list[str]] = [[] for _ in range(flows.stages + 1)]
    for peer, place in flows.places.items():
        by_stage[place.stage].append(peer)
    _, through = _hops(flows.routes)
    for number, column in enumerate(by_stage):
        column.sort(key=lambda peer, k=number: (-through[k, peer], peer))  # type: ignore[misc]
    return [*by_stage, by_stage[0]]


def _positions(columns: Sequence[Sequence[str]], tallest: int) -> dict[tuple[int, str], tuple[float, float]]:
    """The middle of each box, by column and peer."""
    return {
        (number, peer): (30 + BOX_WIDTH / 2 + number * COLUMN, TOP + (i + 0.5) * tallest * ROW / len(column))
        for number, column in enumerate(columns)
        for i, peer in enumerate(column)
    }


def _hops(routes: Mapping[Route, int]) -> tuple[Counter[tuple[int, str, str, str]], Counter[tuple[int, str]]]:
    """Microbatches by (column of the sender, sender, receiver, data peer), and by (column, peer)."""
    hops: Counter[tuple[int, str, str, str]] = Counter()
    through: Counter[tuple[int, str]] = Counter()
    for route, count in routes.items():
        for number, (a, b) in enumerate(pairwise(route)):
            hops[number, a, b, route[0]] += count
        for number, peer in enumerate(route):
            through[number, peer] += count
    return hops, through


def _box(drawing: Drawing, at: tuple[float, float], peer: str, place: Place, count: int, colour: str) -> None:
    x, y = at[0] - BOX_WIDTH / 2, at[1] - BOX_HEIGHT / 2
    is_used = count > 0
    drawing.frame((x, y), (BOX_WIDTH, BOX_HEIGHT), colour if is_used else LIGHT)
    name = peer if len(peer) <= WIDEST_NAME else f"…{peer[1 - WIDEST_NAME :]}"
    drawing.text((at[0], at[1] - 3), name, INK if is_used else GREY, "middle", bold=is_used)
    told = f"{count}" if place.capacity is None else f"{count} of {place.capacity}"
    drawing.text((at[0], at[1] + 12), told if is_used or place.capacity else "not used", GREY, "middle")
