"""The pages tell the truth: every path that they name is there, every `gwtf` line parses, the site builds without a warning."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import OLDER_VERBS, SHORT, VERBS, build_parser
from gwtf_p2p.cli.shared.run_file import run_from_plain

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("peers", "experiments", "experiments/scenarios")),
    ]
)
NAMED = re.compile(r"(?<![\w./-])(?:gwtf_p2p|tests|experiments|examples|peers|docs|\.github)/[\w./*{},-]*[\w*}/]")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^ *```\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def expanded(pattern: str) -> list[str]:
    """Braces as a shell expands them."""
    found = re.search(r"\{([^{}]+)\}", pattern)
    if found is None:
        return [pattern]
    return [name for part in found[1].split(",") for name in expanded(pattern[: found.start()] + part + pattern[found.end() :])]


def commands(text: str) -> list[list[str]]:
    """The `gwtf VERB ...` lines of a page, in blocks and in the text, without comments."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += SPAN.findall(text)
    found = []
    for line in lines:
        words = re.sub(r"^\s*\$?\s*|\s+#.*$", "", line)
        if re.match(r"gwtf [a-z]", words) and "..." not in words.split(" --")[0]:
            found.append(shlex.split(words)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    missing = []
    for name in NAMED.findall(page.read_text()):
        missing += [one for one in expanded(name) if not any(ROOT.glob(one.rstrip("/")))]
    assert missing == []


PLACEHOLDERS = {"YOUR.PUBLIC.ADDRESS": "192.0.2.1", "IP": "192.0.2.1", "PEER": "Qm" + "a" * 44, "PEER_ID": "Qm" + "a" * 44}
"""What the reader has to replace, where a flag takes only what it could be."""


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_of_a_page_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for called in commands(page.read_text()):
        words = [*SHORT.get(called[0], called[:1]), *(PLACEHOLDERS.get(word, word) for word in called[1:])]
        verb = OLDER_VERBS.get(words[0], words[0])
        assert verb in VERBS, f"gwtf {' '.join(words)}"
        flags = [word for word in words[1:] if word.startswith("--")]
        if flags == words[1:]:  # spoken of, not called: the flags must be there
            usage = next(a for a in build_parser(verb)._actions if isinstance(a.choices, dict)).choices[verb]
            assert set(flags) <= set(usage._option_string_actions), f"gwtf {' '.join(words)}"
            continue
        try:
            build_parser(verb).parse_args([verb, *words[1:]])
        except SystemExit as end:
            assert end.code == 0, f"gwtf {' '.join(words)}: {capsys.readouterr().err}"


def test_the_pages_with_commands_are_found() -> None:
    """So that the two tests above do not look at nothing."""
    assert {"README.md", "ARCHITECTURE.md", "peers/README.md", "docs/start.md"} <= {ids(page) for page in PAGES}
    assert ["bootstrap"] in commands((ROOT / "README.md").read_text())
    assert len(NAMED.findall((ROOT / "ARCHITECTURE.md").read_text())) > 50


def test_the_run_file_of_the_readme_is_the_one_in_docs_and_is_right() -> None:
    shown = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    plain = tomllib.loads((ROOT / "docs" / "run.toml").read_text())
    assert tomllib.loads(shown[1]) == plain
    assert run_from_plain(plain, "docs/run.toml").run_id == "my-run"


def test_a_parser_of_a_verb_refuses_what_it_does_not_know() -> None:
    """The check of commands is only as good as this."""
    with pytest.raises(SystemExit):
        build_parser("peer").parse_args(["peer", "--circuit", "sometimes"])
    assert isinstance(build_parser("peer"), argparse.ArgumentParser)


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("furo", reason="the extra `docs` is not installed")
    pages, site = tmp_path / "pages", tmp_path / "site"
    for command in (
        [str(ROOT / "docs" / "site_tools" / "gather.py"), str(pages)],
        ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs"), str(pages), str(site)],
    ):
        built = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    architecture = (site / "architecture.html").read_text()
    assert architecture.count('<div class="sequence">') == 6
    assert "sequenceDiagram" not in architecture
    fetching = re.compile(r'(?:<script[^>]*src|<link[^>]*rel="stylesheet"[^>]*href|<img[^>]*src)="(https?:[^"]+)"')
    for page in site.rglob("*.html"):
        assert fetching.findall(page.read_text()) == [], page.name
