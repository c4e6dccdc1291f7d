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


def test_a_taken_default_port_gives_way_to_the_next_free_one(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    port = settle_port(flags(taken))
    assert taken < port < taken + free_place.MOST_TRIED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"port {taken} is in use: this peer listens on {port} (--port chooses)\n"
    assert f"/ip4/0.0.0.0/tcp/{settle_port(flags(taken))}" in p2p_options(flags(taken), needs_peers=False).host_maddrs


def test_a_given_port_and_an_announced_one_stay_as_they_are(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert settle_port(flags(1, "--port", str(taken))) == taken
    assert settle_port(flags(taken, "--public_ip", "203.0.113.7")) == taken
    assert settle_port(flags(taken, "--announce_maddrs", f"/ip4/203.0.113.7/tcp/{taken}")) == taken
    assert capsys.readouterr().err == ""


def test_a_search_for_a_free_port_ends(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_place, "MOST_TRIED", 1)
    with pytest.raises(InputError, match=str(taken)):
        settle_port(flags(taken))


def test_a_held_default_identity_gives_way_to_the_next_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"GWTF_HOME": str(tmp_path)}
    default, second = tmp_path / "identity.key", tmp_path / "identity_2.key"
    assert settle_identity(None, environment) == default
    with IdentityLock(create_identity(default)):
        assert settle_identity(None, environment) == second
        assert str(second) in capsys.readouterr().err
        with IdentityLock(create_identity(second)):
            assert settle_identity(None, environment) == tmp_path / "identity_3.key"
        assert settle_identity(default, environment) == default
    capsys.readouterr()
    assert settle_identity(None, environment) == default
    assert capsys.readouterr().err == ""


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
