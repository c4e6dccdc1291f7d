"""What starts peers without a person (units of systemd, containers, launchd) types commands that the real parser takes."""

from __future__ import annotations

import plistlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from gwtf_p2p.cli.main import main, verb_module
from gwtf_p2p.live.lives.handover import Handover
from tests.house.test_profiles import MADDR, MORE, PROFILES, home  # noqa: F401

UNITS = sorted((PROFILES / "systemd").glob("*.service"))
PROFILE_OF = {"peer": "public_stage_peer", "data": "data_peer", "bootstrap": "bootstrap", "monitor": "monitor"}


def unsupervised(life: Callable[[Handover], int], said_by: str) -> int:
    """One life, in this process."""
    with closing(Handover()) as handover:
        return life(handover)


def is_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `gwtf WORDS` would have begun."""
    begun: list[Any] = []
    module = verb_module(words[0])
    monkeypatch.setattr(module, "run" if words[0] == "monitor" else "serve", lambda *args: begun.append(args) or 0)
    if hasattr(module, "supervised"):
        monkeypatch.setattr(module, "supervised", unsupervised)
    return main(words) == 0 and len(begun) == 1


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_its_verb_and_lets_it_leave(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = unit.read_text()
    kind = unit.stem.removeprefix("gwtf-")
    [command] = re.findall(r"^ExecStart=%h/\.local/bin/gwtf (.*)$", text, re.M)
    profile = PROFILE_OF[kind]
    assert f"peers/{profile}.toml" in text, "it says what the file is a copy of"
    words = shlex.split(command.replace(f"%h/.config/gwtf/{kind}.toml", str(PROFILES / f"{profile}.toml")))
    assert is_taken([*words, *MORE[profile]], monkeypatch)
    assert "KillMode=mixed" in text, "p2pd outlives the moment in which its peer is told to leave"
    [never] = re.findall(r"^RestartPreventExitStatus=(.*)$", text, re.M)
    assert never.split() == ["2", "5"], "the exit codes that trying again does not mend"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("%h/.local/bin/gwtf", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=120)
    said = [line for line in found.stderr.splitlines() if unit.stem in line]
    assert not said


def test_the_containers_of_compose_start_their_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((PROFILES / "docker" / "compose.yml").read_text())["services"]
    assert set(services) == {"bootstrap", "monitor"}
    values = {"PUBLIC_IP": "203.0.113.7", "MADDR": MADDR, "RUN_ID": "r"}
    for name, service in services.items():
        words = [re.sub(r"\$\{(\w+)(?::-)?\}", lambda found: values[found[1]], word) for word in service["command"]]
        words = [word.replace("/data/", str(PROFILES) + "/") if word == "/data/bootstrap.key" else word for word in words]
        assert words[0] == name and is_taken(words, monkeypatch)
        assert (PROFILES / "docker" / service["build"]["context"]).resolve() == PROFILES.parent
        assert service["init"], "somebody has to reap what p2pd leaves"
    assert services["bootstrap"]["ports"] == ["31337:31337", "31337:31337/udp"], "it announces both, with --public_ip"


def test_the_container_copies_what_the_package_is_built_from() -> None:
    root = PROFILES.parent
    copied = re.findall(r"^COPY (?!--from)(.*)$", (PROFILES / "docker" / "Dockerfile").read_text(), re.M)
    named = {word for line in copied for word in line.split()[:-1]}
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert named == let_in and all((root / name).exists() for name in named)
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "gwtf_p2p"} <= named


def test_the_agent_of_launchd_starts_a_peer_again_when_it_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agent = plistlib.loads((PROFILES / "launchd" / "gwtf.peer.plist").read_bytes())
    program, *words = agent["ProgramArguments"]
    values = {"MADDR": MADDR, "/Users/YOU/.gwtf/checkpoints": str(tmp_path / "checkpoints")}
    assert program.endswith("/gwtf") and is_taken([values.get(word, word) for word in words], monkeypatch)
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
