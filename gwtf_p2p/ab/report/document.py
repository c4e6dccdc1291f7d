"""A small document: blocks that are written as Markdown and as one HTML file with its pictures inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
body { font-family: system-ui, sans-serif; color: #222; max-width: 1160px; margin: 2em auto; padding: 0 1em; line-height: 1.45;
  overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: 1em 0 }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: 4px 6px; text-align: right; overflow-wrap: normal }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
td:first-child, td:nth-child(2) { min-width: 8em; overflow-wrap: break-word }
td span { white-space: nowrap }
pre { white-space: pre-wrap; background: #f3f3f3; padding: .6em; font-size: 12px; max-height: 24em; overflow: auto }
:target { outline: 3px solid #1f5fa8; outline-offset: 4px } a { color: #1f5fa8 }
@page { size: A4; margin: 12mm }
@media print { body { margin: 0; max-width: none; font-size: 12px } pre { max-height: none } .wide { overflow: visible }
  figure, tr { break-inside: avoid } th, td { padding: 2px 4px; font-size: 9.5px } }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td.words { text-align: left; white-space: normal; vertical-align: top }
figure { margin: 1.5em 0 } figcaption { color: #555; font-size: 14px } figure svg { max-width: 100%; height: auto }
code { background: #f3f3f3; padding: 1px 4px } figure svg { border-radius: 6px }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark } body { background: #17191c; color: #e8e8e8 }
  pre, code { background: #26292e } a { color: #8ab8f0 } th, td { border-color: #43474d } figcaption { color: #b4b4b4 } }
"""

INTERVAL = re.compile(r"([\d.]+-[\d.]+) (\(\d+%\))")


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
    """`wordy`: cells are sentences, not figures. Rows in `bold` stand out.

    `links`: for each row the anchor that its second cell leads to.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wordy: bool = False
    bold: frozenset[int] = frozenset()
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """`file`: where Markdown finds it, relative to the report."""

    file: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Raw:
    """The lines that rows of tables are made of, under the name that they link to."""

    anchor: str
    title: str
    lines: tuple[str, ...]


Block = Heading | Paragraph | Code | Table | Figure | Raw


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
        case Raw(anchor, title, raw):
            told = "\n".join(raw)
            return f'<a id="{anchor}"></a>\n\n#### {title}\n\n```\n{told}\n```'
        case Table(head, rows, wordy, bold, links):
            align = "|".join("---" if wordy or i == 0 else "---:" for i in range(len(head)))
            lines = [f"| {' | '.join(head)} |", f"|{align}|"]
            for number, row in enumerate(rows):
                cells = [cell.replace("|", "/") for cell in row]
                cells = [f"**{cell}**" if number in bold and cell else cell for cell in cells]
                if links:
                    cells[1] = f"[{cells[1]}](#{links[number]})"
                lines.append(f"| {' | '.join(cells)} |")
            return "\n".join(lines)


def html(title: str, blocks: Sequence[Block]) -> str:
    """Nothing in it is loaded from elsewhere."""
    body = "\n".join(_html(block) for block in blocks)
    screen = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{screen}<title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang='en'><head>{head}</head><body><main>\n{body}\n</main></body></html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Figure(_, svg, caption):
            return f"<figure>{svg}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Raw(anchor, title, raw):
            told = escape("\n".join(raw))
            return (
                f'<section class="raw" id="{escape(anchor)}"><h4>{_inline(title)}</h4><pre tabindex="0">{told}</pre></section>'
            )
        case Table(head, rows, wordy, bold, links):
            kind = ' class="words"' if wordy else ""
            top = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head)
            lines = []
            for number, row in enumerate(rows):
                cells = [_inline(cell) if wordy else _cell(cell) for cell in row]
                cells = [f"<b>{cell}</b>" if number in bold else cell for cell in cells]
                if links:
                    cells[1] = f'<a href="#{escape(links[number])}">{cells[1]}</a>'
                lines.append("<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell in cells) + "</tr>")
            body = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
            return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(", ".join(head[:4]))}">{body}</div>'


def _cell(text: str) -> str:
    """A name breaks between its words only, an interval before what it covers."""
    interval = INTERVAL.fullmatch(text)
    if interval is not None:
        return f"<span>{interval[1]}</span> <span>{interval[2]}</span>"
    return re.sub(r"(?<=\w)([_:@=])(?=\w)", r"\1<wbr>", _inline(text))


def _inline(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
