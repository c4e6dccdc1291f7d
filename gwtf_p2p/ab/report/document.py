"""A small document: blocks that are written as Markdown and as one HTML file with its pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
body { font-family: system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2em auto; padding: 0 1em; line-height: 1.45 }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px }
th, td { border-bottom: 1px solid #ddd; padding: 4px 9px; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td.words { text-align: left; white-space: normal; vertical-align: top }
figure { margin: 1.5em 0 } figcaption { color: #555; font-size: 14px } figure svg { max-width: 100%; height: auto }
code { background: #f3f3f3; padding: 1px 4px }
"""


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """`wordy`: cells are sentences, not figures. Rows in `bold` stand out."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wordy: bool = False
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Figure:
    """`file`: where Markdown finds it, relative to the report."""

    file: str
    svg: str
    caption: str


Block = Heading | Paragraph | Code | Table | Figure


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Code(text):
            return f"```\n{text}\n```"
        case Figure(file, _, caption):
            return f"![{caption}]({file})\n\n{caption}"
        case Table(head, rows, wordy, bold):
            align = "|".join("---" if wordy or i == 0 else "---:" for i in range(len(head)))
            lines = [f"| {' | '.join(head)} |", f"|{align}|"]
            for number, row in enumerate(rows):
                cells = [f"**{cell}**" if number in bold and cell else cell for cell in row]
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
            return "\n".join(lines)


def html(title: str, blocks: Sequence[Block]) -> str:
    """Nothing in it is loaded from elsewhere."""
    body = "\n".join(_html(block) for block in blocks)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Figure(_, svg, caption):
            return f"<figure>{svg}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Table(head, rows, wordy, bold):
            kind = ' class="words"' if wordy else ""
            top = "".join(f"<th>{_inline(cell)}</th>" for cell in head)
            lines = []
            for number, row in enumerate(rows):
                cells = [f"<b>{_inline(cell)}</b>" if number in bold else _inline(cell) for cell in row]
                lines.append("<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell in cells) + "</tr>")
            return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _inline(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
