"""The scripts of `findings/`, read and not run: each can be run anywhere, by anybody, and says what it claims."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[2] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==\d+(\.\d+)*")
MACHINE_PATH = re.compile(r"(?<![\w.$}/])(~|/(home|root|work|Users|opt|tmp|var|mnt|srv)\b)")
EMBEDDED = re.compile(r"<<'PY'\n(.*?)\nPY\n", re.DOTALL)


def by_name(path: Path) -> str:
    return path.stem


each = pytest.mark.parametrize("script", SCRIPTS, ids=by_name)


def installs(text: str) -> list[list[str]]:
    """The packages of each call of the script's `install`, options left out."""
    calls = [line.split()[1:] for line in text.splitlines() if line.startswith("install ")]
    return [[word for word in words if not word.startswith("--")] for words in calls]


def test_the_readme_lists_every_script_and_no_other() -> None:
    listed = re.findall(r"^\| `([a-z0-9_]+\.sh)` \|", (FINDINGS / "README.md").read_text(), re.MULTILINE)
    assert len(SCRIPTS) >= 5
    assert sorted(listed) == [script.name for script in SCRIPTS]


@each
def test_a_script_stops_at_the_first_error_and_works_in_a_folder_that_it_removes(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for line in ("set -euo pipefail", 'work="$(mktemp -d)"', "trap 'rm -rf \"$work\"' EXIT", '"$python" -m venv "$work/env"'):
        assert line in lines
    assert os.access(script, os.X_OK)


@each
def test_a_script_pins_what_it_installs(script: Path) -> None:
    text = script.read_text()
    calls = installs(text)
    assert calls and all(calls)
    assert [word for words in calls for word in words if not PINNED.fullmatch(word)] == []
    assert re.findall(r".*pip.* install.*", text) == [
        'install() { "$work/env/bin/pip" install --quiet --quiet --no-compile --disable-pip-version-check "$@"; }'
    ]


@each
def test_a_script_needs_nothing_of_this_project_and_no_path_of_a_machine(script: Path) -> None:
    text = script.read_text()
    assert "gwtf" not in text.lower()
    assert MACHINE_PATH.findall(text) == []


@each
def test_a_script_says_and_prints_versions_behaviour_and_source(script: Path) -> None:
    text = script.read_text()
    header = text.split("\nset -euo pipefail", maxsplit=1)[0].splitlines()[1:]
    assert all(line.startswith("# ") or line == "#" for line in header)
    for word in ("Versions:", "Behaviour:", "Source:"):
        assert sum(line.startswith(f"# {word} ") for line in header) == 1
    assert "https://" in "\n".join(header)
    assert "sed -n '2,/^set /s/^# \\{0,1\\}//p' \"$0\"" in text.splitlines()
    versions = "\n".join(header).split("# Versions:")[1].split("# Behaviour:")[0]
    pins = {word.split("==")[0]: word.split("==")[1] for words in installs(text) for word in words}
    first = pins[next(iter(pins))]
    assert first in versions


@each
def test_a_script_fails_when_it_is_no_longer_so(script: Path) -> None:
    text = script.read_text()
    assert "NO LONGER SO" in text and "As stated." in text
    assert "sys.exit(" in text or "exit 1" in text


@each
def test_a_script_is_sound_bash_with_sound_python_in_it(script: Path) -> None:
    programs = EMBEDDED.findall(script.read_text())
    assert len(programs) == script.read_text().count("<<'PY'") > 0
    for number, program in enumerate(programs):
        compile(program, f"{script.name}, program {number + 1}", "exec")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert subprocess.run([bash, "-n", script], capture_output=True, text=True, check=False).stderr == ""


def test_the_checks_of_every_commit_do_not_run_them() -> None:
    for name in (".ci/run", "Makefile"):
        path = FINDINGS.parent / name
        assert not re.search(r"findings/\S*\.sh", path.read_text())
