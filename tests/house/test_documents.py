"""A text of the repository cites only documents that the repository has: a reader can follow every one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gwtf_p2p", "tests", "experiments", "peers", "findings", "docs", "examples")
FILES_OF_NAMES = {"docs/site_tools/gather.py", "tests/house/test_site_tools.py"}
"""What takes pages by their names, whether or not they are there: no text that cites."""
SUFFIXES = {".py", ".md", ".toml", ".cfg", ".yml", ".yaml", ".sh", ".txt"}
FILE = re.compile(r"(?<![\w/.:-])(?:[\w.-]+/)*[A-Z][A-Z_]+\.md\b")
"""A document by its file name in capitals, with or without a folder. Those in lower case are often written, not read."""
SECTION = re.compile(r"\b([A-Z][A-Z_]{3,})(?:'s)? sections? \d")
"""A numbered section of a document that is named in capitals and without its ending."""


NAME = "ABSENT"
"""A document that there is not; written apart from what makes a citation of it, or this file would cite it."""


def texts() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.suffix in SUFFIXES)
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)


def missing(text: str, folder: Path) -> list[str]:
    """The documents that a text in a folder cites and that lie neither there nor, by that path, in the repository."""
    cited = [match.group() for match in FILE.finditer(text)]
    cited += [f"{match.group(1)}.md" for match in SECTION.finditer(text)]
    return [name for name in cited if not (folder / name).exists() and not (ROOT / name).exists()]


def test_no_text_cites_a_document_that_the_repository_does_not_have() -> None:
    read = list(texts())
    assert ROOT / "README.md" in read and ROOT / "gwtf_p2p" / "version.py" in read
    found = {str(path.relative_to(ROOT)): names for path in read if (names := missing(path.read_text(), path.parent))}
    found = {path: names for path, names in found.items() if path not in FILES_OF_NAMES}
    assert found == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"as {NAME} section 4 says", [f"{NAME}.md"]),
        (f"{NAME}'s sections 2 and 3", [f"{NAME}.md"]),
        (f"see {NAME}.md", [f"{NAME}.md"]),
        (f"see peers/{NAME}.md", [f"peers/{NAME}.md"]),
        ("see README.md and peers/README.md, and README section 1", []),
        ("RFC 6887 section 11 is another's document, and report.md is one that the program writes", []),
    ],
)
def test_a_citation_is_recognised(text: str, expected: list[str]) -> None:
    assert missing(text, ROOT) == expected
