"""What `make docs` adds to mkdocs: the repository's own pages, the reference of run.toml, and diagrams that are drawn here.

Pages that live in the repository's folders (README.md, peers/README.md, ...) are shown as they are; their links to each other
become links of the site, and a link to a file that is no page becomes its path. mkdocs runs in strict mode, so whatever does
not fit (a missing page, a link into nothing, a field of the run record that nobody explains) ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import run_reference
import sequence_svg
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

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

FOLDERS = {"peers/": "peers.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, target in PAGES.items():
        path = ROOT / source
        if path.exists():
            files.append(File.generated(config, target, content=with_links(path.read_text(), posixpath.dirname(source))))
    files.append(File.generated(config, "run-toml.md", content=run_reference.page()))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page on security is shown once the repository has one."""
    if (ROOT / "SECURITY.md").exists() and config.nav is not None:
        config.nav.append({"Security": "security.md"})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Draw the diagrams."""
    return MERMAID.sub(lambda found: f'<div class="sequence">\n{sequence_svg.render(found[1])}\n</div>', markdown)


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
