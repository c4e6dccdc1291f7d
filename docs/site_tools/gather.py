"""Gathers the pages of the site into one folder: `python docs/site_tools/gather.py FOLDER`, then Sphinx builds it.

Pages that live in the repository's folders (README.md, peers/README.md, ...) are shown as they are; their links to each other
become links of the site, and a link to a file that is no page becomes its path. The reference of run.toml is made from the
code, and diagrams are drawn here, so that a reader's browser fetches nothing. Whatever does not fit (a link into nothing, a
field of the run record that nobody explains, a diagram that cannot be drawn) ends with a ValueError.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path

import run_reference
import sequence_svg

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "peers/README.md": "peers.md",
    "experiments/README.md": "experiments.md",
    "experiments/scenarios/README.md": "scenarios.md",
}
"""Pages of the repository, and where they stand in the site. One that the repository does not have is left out."""

CONTENTS = {
    "Use it": ("start", "volunteer", "run-a-swarm", "peers", "run-toml", "operations", "what-you-see", "faq", "security"),
    "Research": ("compare", "scenarios", "experiments"),
    "Build it": ("architecture", "contributing", "wire-compatibility", "changelog"),
}
FOLDERS = {"peers/": "peers.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def gather(target: Path) -> None:
    """Fill an empty folder with Markdown and images. Raises ValueError (see the module)."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", target / "images")
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    for source, name in PAGES.items():
        if (ROOT / source).exists():
            pages[name] = with_links((ROOT / source).read_text(), posixpath.dirname(source))
    pages["run-toml.md"] = run_reference.page()
    pages["index.md"] += contents({Path(name).stem for name in pages})
    for name, text in pages.items():
        drawn = MERMAID.sub(lambda found: f'<div class="sequence">\n{sequence_svg.render(found[1])}\n</div>', text)
        (target / name).write_text(drawn)


def contents(pages: set[str]) -> str:
    """The site's menu, as Sphinx reads it from the first page."""
    parts = []
    for caption, names in CONTENTS.items():
        there = "\n".join(name for name in names if name in pages)
        parts.append(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{there}\n```\n")
    return "".join(parts)


def with_links(markdown: str, folder: str) -> str:
    """The page of a repository folder with its links as the site has them."""

    def change(found: re.Match[str]) -> str:
        image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        page = PAGES.get(path) or FOLDERS.get(target)
        if page is None and path.startswith("docs/") and (image or path.endswith(".md")):
            page = path.removeprefix("docs/")
        if page is not None:
            return f"{image}[{text}]({page}{anchor})"
        if not (ROOT / path).exists():
            raise ValueError(f"a page of {folder or 'the repository'} links to {target}, which is not there")
        return f"`{path}`"

    return LINK.sub(change, markdown)


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
