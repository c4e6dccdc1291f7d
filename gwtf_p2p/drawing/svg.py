"""Just enough SVG to draw the report's pictures, without a drawing library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from gwtf_p2p.drawing.axes import ticks

INK, GREY, LIGHT, BLUE = "#222222", "#666666", "#dddddd", "#1f5fa8"
FONTS = "DejaVu Sans, Noto Sans, Liberation Sans, Arial, Helvetica, Segoe UI, Ubuntu, Cantarell, FreeSans, sans-serif"
"""What the systems have that peers run on; a renderer of PNG takes none that is not named."""

LETTER_WIDTH, BOLD_WIDTH = 7.0, 8.2
"""Pixels of a letter of 12 pixels, in the widest of `FONTS`; a line of many wide ones is still shorter."""

PALETTE = ("#1f5fa8", "#c8501e", "#2b8a3e", "#8e44ad", "#b8860b", "#0e7c86", "#a61e4d", "#555555", "#6a8d2f", "#3b3b98")


@dataclass
class Drawing:
    """Elements in order; `done` closes it. Lengths in pixels."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, a: tuple[float, float], b: tuple[float, float], colour: str, width: float = 1, extra: str = "") -> None:
        ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
        self.parts.append(f'<line {ends} stroke="{colour}" stroke-width="{width:g}" {extra}/>')

    def box(self, at: tuple[float, float], size: tuple[float, float], colour: str, title: str = "", opacity: float = 1) -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        shape = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
        self.parts.append(f'<rect {shape} fill="{colour}" fill-opacity="{opacity:g}">{told}</rect>')

    def dot(self, at: tuple[float, float], radius: float, colour: str, hollow: bool = False, opacity: float = 1) -> None:
        paint = f'fill="white" stroke="{colour}"' if hollow else f'fill="{colour}" fill-opacity="{opacity:g}"'
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" {paint}/>')

    def text(
        self,
        at: tuple[float, float],
        words: str,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
        *,
        room: float = 0,
    ) -> None:
        """`room`: the most pixels across (0: any); what is longer is cut in the middle, and told whole to the pointer."""
        most = int(room / (BOLD_WIDTH if bold else LETTER_WIDTH))
        if room and len(words) > most:
            half = max(1, (most - 1) // 2)
            self.text(at, f"{words[:half]}…{words[-half:]}", colour, anchor, bold)
            self.parts[-1] = self.parts[-1].replace("</text>", f"<title>{escape(words)}</title></text>")
            return
        weight = ' font-weight="bold"' if bold else ""
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        self.parts.append(f'<text {place} fill="{colour}"{weight}>{escape(words)}</text>')

    def frame(self, at: tuple[float, float], size: tuple[float, float], colour: str) -> None:
        """A white box with round corners and a border."""
        shape = f'x="{at[0]:.1f}" y="{at[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}" rx="6"'
        self.parts.append(f'<rect {shape} fill="white" stroke="{colour}" stroke-width="1.5"/>')

    def curve(self, a: tuple[float, float], b: tuple[float, float], colour: str, width: float, title: str) -> None:
        """From left to right, level at both ends."""
        bend = (b[0] - a[0]) / 2
        way = f"M{a[0]:.1f},{a[1]:.1f} C{a[0] + bend:.1f},{a[1]:.1f} {b[0] - bend:.1f},{b[1]:.1f} {b[0]:.1f},{b[1]:.1f}"
        paint = f'fill="none" stroke="{colour}" stroke-width="{width:.1f}" stroke-opacity="0.55"'
        self.parts.append(f'<path d="{way}" {paint}><title>{escape(title)}</title></path>')

    def path(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.5) -> None:
        told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def done(self) -> str:
        head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" font-family="{FONTS}" font-size="12"'
        body = "\n".join(self.parts)
        return f'<svg {head} {size}>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values inside the scale."""
        return ticks(self.low, self.high, about)
