"""Each profile in peers/ is read by the real `-c` flag of its verb, and says what its first line promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.cli.main import VERBS, main, verb_module

PROFILES = Path(__file__).parents[2] / "peers"
MADDR = "/ip4/192.0.2.1/tcp/31337/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
MORE = {
    "bootstrap": ("--public_ip", "203.0.113.7"),
    "public_stage_peer": ("--initial_peers", MADDR, "--run_id", "r", "--public_ip", "203.0.113.7"),
    "stage_peer_behind_nat": ("--initial_peers", MADDR, "--run_id", "r"),
    "data_peer": ("--initial_peers", MADDR, "--run_id", "r"),
    "doctor": ("--initial_peers", MADDR),
    "monitor": ("--initial_peers", MADDR, "--run_id", "r", "other", "--join_peers", MADDR),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity that a profile leaves to be chosen is none of the user's."""
    monkeypatch.setenv("GWTF_HOME", str(tmp_path))


def verb_of(path: Path) -> str:
    """Of the command in the file's first line."""
    match = re.match(rf"# gwtf (\w+) -c peers/{path.name}\b", path.read_text())
    assert match is not None, path
    return match.group(1)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What the verb was about to do: its config (None for who is no peer) and its flags."""
    path = PROFILES / f"{name}.toml"
    verb = verb_of(path)
    caught: list[tuple[Any, Any]] = []
    module = verb_module(verb)
    if verb in ("doctor", "monitor"):
        monkeypatch.setattr(module, "run", lambda args: caught.append((None, args)) or 0)
    else:
        monkeypatch.setattr(module, "serve", lambda config, args, report: caught.append((config, args)) or 0)
    assert main([verb, "-c", str(path), *MORE[name]]) == 0
    return caught[0]


def test_every_profile_is_tried_and_described() -> None:
    names = {path.stem for path in PROFILES.glob("*.toml")}
    assert names == set(MORE)
    readme = (PROFILES / "README.md").read_text()
    for name in names:
        assert verb_of(PROFILES / f"{name}.toml") in VERBS
        assert f"| `{name}.toml` | `gwtf {verb_of(PROFILES / f'{name}.toml')}` |" in readme


def test_the_bootstrap_announces_its_public_port(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = load("bootstrap", monkeypatch)
    assert config.role == "bootstrap"
    assert "/ip4/0.0.0.0/tcp/31337" in config.options.host_maddrs
    assert "/ip4/203.0.113.7/tcp/31337" in config.options.announce_maddrs


def test_the_public_stage_peer_announces_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = load("public_stage_peer", monkeypatch)
    assert (config.role, config.run_id, config.capacity) == ("peer", "r", 4)
    assert config.options.announce_maddrs == ("/ip4/203.0.113.7/tcp/31330",)
    assert config.checkpoints.folder is not None


def test_the_stage_peer_behind_nat_listens_on_a_fixed_port_and_may_use_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = load("stage_peer_behind_nat", monkeypatch)
    assert config.role == "peer"
    assert config.options.host_maddrs == ("/ip4/0.0.0.0/tcp/31330",)
    assert config.options.announce_maddrs == ()
    assert config.options.use_relay
    assert config.options.auto_nat


def test_the_data_peer_can_stand_beside_a_stage_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = load("data_peer", monkeypatch)
    beside, _ = load("stage_peer_behind_nat", monkeypatch)
    assert config.role == "data"
    assert config.options.host_maddrs != beside.options.host_maddrs
    assert config.identity_path != beside.identity_path


def test_the_doctor_looks_at_the_port_of_the_stage_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    _, args = load("doctor", monkeypatch)
    beside, _ = load("stage_peer_behind_nat", monkeypatch)
    assert beside.options.host_maddrs == (f"/ip4/0.0.0.0/tcp/{args.port}",)
    assert args.initial_peers == [MADDR]


def test_the_monitor_serves_a_public_page_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    _, args = load("monitor", monkeypatch)
    assert (args.public, args.host, args.port) == (True, "127.0.0.1", 8765)
    assert args.run_id == ["r", "other"] and args.join_peers == [MADDR]
