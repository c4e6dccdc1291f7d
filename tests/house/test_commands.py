"""Commands on the pages are run where they need no other machine; of the others, names, targets and flags are looked up."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import fastjsonschema
import pytest
import yaml

from gwtf_p2p.cli.main import build_parser, main
from gwtf_p2p.cli.shared.run_schema import run_file_schema
from tests.house.test_pages import BLOCK, PAGES, ROOT, SPAN, commands, ids

MADE = re.compile(r"^make ([a-z-]+)(?: ARGS=\"(.*)\")?")
MODULE = re.compile(r"python -m ((?:experiments|tests)[\w.]*)([^`|\n]*)")


def lines_of(page: Path) -> list[str]:
    """All lines of code of a page."""
    text = page.read_text()
    blocks = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip().removeprefix("$ ") for line in [*blocks, *SPAN.findall(text)]]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_make_target_is_there_and_its_arguments_parse(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in lines_of(page):
        made = MADE.match(line)
        if made is None:
            continue
        assert made[1] in targets, line
        if made[1] == "demo" and made[2] and "--help" not in made[2]:
            build_parser("demo").parse_args(["demo", *shlex.split(made[2])])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_module_that_a_page_calls_is_there_and_knows_the_flags(page: Path) -> None:
    for line in lines_of(page):
        for name, rest in MODULE.findall(line):
            file = ROOT / (name.replace(".", "/") + ".py")
            folder = ROOT / name.replace(".", "/")
            file = next((f for f in (file, folder / "__main__.py") if f.exists()), folder / "__init__.py")
            assert file.exists(), f"{ids(page)}: python -m {name}"
            source = file.read_text()
            for flag in re.findall(r"(?<= )--([a-z_]+)", rest):
                assert f'"--{flag}"' in source or f'add_flag("{flag}' in source, f"{ids(page)}: python -m {name} --{flag}"


def test_every_alert_has_its_line_in_operations() -> None:
    rules = yaml.safe_load((ROOT / "peers" / "monitoring" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    told = set(re.findall(r"^\| ([A-Z]\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    assert told == alerts


def stands_on_a_page(words: list[str]) -> bool:
    """Is it called on a page of the site or in the README, as it is run here?"""
    return any(words == found for page in PAGES for found in commands(page.read_text()))


@pytest.mark.parametrize("words", [["run", "schema"], ["id"]])
def test_a_command_that_answers_at_once_does(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stands_on_a_page(words)
    monkeypatch.setenv("GWTF_HOME", str(tmp_path))
    assert main(words) == 0 and capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        words
        for page in PAGES
        if page.parent.name == "docs"
        for words in commands(page.read_text())
        if words[0] == "sim" and (ROOT / " ".join(words[1:2])).is_file()
    ],
    ids=" ".join,
)
def test_every_simulation_of_the_site_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one seed of those that the page names."""
    scenario = ROOT / words[1]
    monkeypatch.chdir(tmp_path)
    assert main(["sim", str(scenario), *words[2:], "--seeds", "0"]) == 0
    drawn = [Path(words[i + 1]) for i, word in enumerate(words) if word == "--draw"]
    assert all(file.stat().st_size > 1000 for file in drawn)


@pytest.mark.slow
def test_the_run_file_of_the_pages_is_checked_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "check", str(ROOT / "docs" / "run.toml")]) == 0
    assert "my-run" in capsys.readouterr().out


UNSEEN = re.compile(r"^ *```(?:sh|bash|shell|console|text)\b", re.MULTILINE)
FENCED = re.compile(r"^ *```([a-z]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_block_of_commands_is_hidden_from_these_tests(page: Path) -> None:
    """They read blocks without a language."""
    assert UNSEEN.findall(page.read_text()) == []


def test_every_setting_of_a_run_that_a_page_shows_is_one() -> None:
    schema = run_file_schema()
    check = fastjsonschema.compile({**schema, "required": []})
    blocks = [block for page in PAGES for _, block in FENCED.findall(page.read_text()) if re.match("[a-z_]+ = ", block)]
    assert len(blocks) >= 4
    for block in blocks:
        check(tomllib.loads(block))
    with pytest.raises(fastjsonschema.JsonSchemaException):
        check({"optimizer": {"learning_rat": 1e-3}})


@pytest.mark.slow
@pytest.mark.live
def test_the_demo_of_the_first_page_can_be_played_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two steps of its twenty."""
    words = next(w for w in commands((ROOT / "docs" / "start.md").read_text()) if w[0] == "demo")
    after = next(w for w in commands((ROOT / "docs" / "start.md").read_text()) if w[0] == "replay")
    words[words.index("--steps") + 1] = "2"
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-m", "gwtf_p2p", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(after) == 0
    assert (tmp_path / after[-1]).stat().st_size > 10_000
