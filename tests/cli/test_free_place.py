"""A peer that is told neither port nor identity takes the next free ones, and says so; what was given is never changed."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwtf_p2p.cli.shared import free_place
from gwtf_p2p.cli.shared.free_place import settle_identity, settle_port
from gwtf_p2p.cli.shared.peer_flags import add_network_flags, p2p_options
from gwtf_p2p.live.libp2p.identity import IdentityLock, create_identity
from gwtf_p2p.protocol.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """No claim of a test reaches the user's own folder."""
    monkeypatch.setenv("GWTF_HOME", str(tmp_path))
    return {"GWTF_HOME": str(tmp_path)}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on, and whose successor is free."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        yield listener.getsockname()[1]


def flags(port: int, *arguments: str) -> argparse.Namespace:
    """What a verb's parser makes of these, when `port` is its default."""
    parser = argparse.ArgumentParser()
    add_network_flags(parser, port)
    return parser.parse_args(arguments)


def test_a_taken_default_port_gives_way_to_the_next_free_one(
    taken: int, home: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = settle_port(flags(taken), home)
    assert taken < port < taken + free_place.MOST_TRIED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"port {taken} is in use: this peer listens on {port} (--port chooses)\n"


def test_a_port_that_another_peer_has_chosen_is_not_chosen_again(taken: int, home: dict[str, str]) -> None:
    """Though nobody listens on it yet: that takes a peer some seconds."""
    ports = [settle_port(flags(taken), home) for _ in range(3)]
    assert len(set(ports)) == 3


def test_the_chosen_port_is_the_one_that_p2pd_gets(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    options = p2p_options(flags(taken), needs_peers=False)
    chosen = capsys.readouterr().err.partition("listens on ")[2].split()[0]
    assert f"/ip4/0.0.0.0/tcp/{chosen}" in options.host_maddrs


def test_a_given_port_and_an_announced_one_stay_as_they_are(
    taken: int, home: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert settle_port(flags(1, "--port", str(taken)), home) == taken
    assert settle_port(flags(taken, "--public_ip", "203.0.113.7"), home) == taken
    assert settle_port(flags(taken, "--announce_maddrs", f"/ip4/203.0.113.7/tcp/{taken}"), home) == taken
    assert capsys.readouterr().err == ""


def test_a_search_for_a_free_port_ends(taken: int, home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_place, "MOST_TRIED", 1)
    with pytest.raises(InputError, match=str(taken)):
        settle_port(flags(taken), home)


def test_a_held_default_identity_gives_way_to_the_next_file(
    tmp_path: Path, home: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    default = tmp_path / "identity.key"
    with IdentityLock(create_identity(default)):
        assert settle_identity(None, home) == tmp_path / "identity_2.key"
        assert "identity_2.key" in capsys.readouterr().err
        assert settle_identity(default, home) == default
    capsys.readouterr()
    assert settle_identity(None, home) == default
    assert capsys.readouterr().err == ""


def test_an_identity_that_another_peer_has_chosen_is_not_chosen_again(tmp_path: Path, home: dict[str, str]) -> None:
    names = [settle_identity(None, home).name for _ in range(3)]
    assert names == ["identity.key", "identity_2.key", "identity_3.key"]


@pytest.mark.parametrize(
    ("arguments", "use_relay", "use_auto_relay"),
    [
        ((), True, False),
        (("--use_relay",), True, False),
        (("--circuit_relay", "auto"), True, False),
        (("--circuit_relay", "yes"), True, True),
        (("--use_auto_relay",), True, True),
        (("--circuit_relay", "no"), False, False),
        (("--no_relay",), False, False),
    ],
)
def test_one_flag_says_how_circuit_relays_are_used(arguments: tuple[str, ...], use_relay: bool, use_auto_relay: bool) -> None:
    options = p2p_options(flags(0, *arguments), needs_peers=False)
    assert (options.use_relay, options.use_auto_relay) == (use_relay, use_auto_relay)
