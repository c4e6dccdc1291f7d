"""Addresses as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.live.libp2p.maddrs import parse_initial_peer, parse_initial_peers, parse_listen_maddrs
from gwtf_p2p.protocol.errors import InputError

ED = "12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK"
RSA = "QmfWcATkmaWxE3vig2YccQB3ExnUokDfCC1SoSafbcX6UQ"
GOOD = f"/ip4/1.2.3.4/tcp/31337/p2p/{ED}"


@pytest.mark.parametrize(
    ("text", "host", "port", "transport", "peer"),
    [
        (GOOD, "1.2.3.4", 31337, "tcp", ED),
        (f"/ip6/2001:db8::1/tcp/1/p2p/{RSA}", "2001:db8::1", 1, "tcp", RSA),
        (f"/dns4/boot.example.org/udp/31337/quic-v1/p2p/{RSA}", "boot.example.org", 31337, "quic-v1", RSA),
        (f"/dns/localhost/udp/65535/quic-v1/p2p/{ED}/", "localhost", 65535, "quic-v1", ED),
        (f"/ip4/1.2.3.4/tcp/5/ipfs/{RSA}", "1.2.3.4", 5, "tcp", RSA),
    ],
)
def test_usual_forms_are_understood(text: str, host: str, port: int, transport: str, peer: str) -> None:
    parsed = parse_initial_peer(text)
    assert (parsed.host, parsed.port, parsed.transport, parsed.peer, parsed.relay) == (host, port, transport, peer, None)
    assert "/ipfs/" not in parsed.text


def test_a_peer_behind_a_relay_is_named_by_its_own_id() -> None:
    parsed = parse_initial_peer(f"/ip4/1.2.3.4/tcp/5/p2p/{ED}/p2p-circuit/p2p/{RSA}")
    assert (parsed.peer, parsed.relay, parsed.port) == (RSA, ED, 5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1.2.3.4:31337", "no peer id"),
        ("/ip4/1.2.3.4/tcp/31337", "no peer id"),
        (f"/ip4/1.2.3.4/tcp/31337/p2p/{ED[:-1]}", "is no peer id"),
        (f"/ip4/1.2.3.4/tcp/31337/p2p/{ED[:-1]}0", "is no peer id"),
        (f"/ip4/1.2.3.456/tcp/31337/p2p/{ED}", "no /ip4 host"),
        (f"/ip6/1.2.3.4/tcp/31337/p2p/{ED}", "no /ip6 host"),
        (f"/dns4/bad_host-/tcp/31337/p2p/{ED}", "no /dns4 host"),
        (f"/ip4/1.2.3.4/tcp/70000/p2p/{ED}", "'70000' is no port"),
        (f"/ip4/1.2.3.4/tcp/0/p2p/{ED}", "port 0"),
        (f"/ip4/1.2.3.4/tcp/²/p2p/{ED}", "is no port"),
        (f"/ip4/1.2.3.4/udp/31337/p2p/{ED}", "no transport"),
        (f"/ip4/1.2.3.4/tcp/31337/ws/p2p/{ED}", "no transport"),
        (f"/unix/tmp/x/p2p/{ED}", "expected /ip4/1.2.3.4/tcp/31337/p2p/12D3Koo"),
        (f"/ip4/1.2.3.4/tcp/5/p2p/{ED}/p2p/{RSA}", "one peer id"),
        (f"/ip4/1.2.3.4/tcp/5/p2p/{ED}/p2p-circuit", "is no peer id"),
    ],
)
def test_what_is_wrong_is_named_with_the_expected_form(text: str, complaint: str) -> None:
    with pytest.raises(InputError) as error:
        parse_initial_peers([GOOD, text], {})
    assert text in str(error.value) and complaint in str(error.value)
    assert "expected /ip4/1.2.3.4/tcp/31337/p2p/12D3Koo" in str(error.value) and "--initial_peers" in str(error.value)


def test_lists_files_and_the_environment_are_read(tmp_path: Path) -> None:
    other = f"/ip4/5.6.7.8/tcp/1/p2p/{RSA}"
    file = tmp_path / "peers.txt"
    file.write_text(f"# bootstrap peers\n{GOOD}  # ours\n\n{other},{GOOD}\n")
    expected = [GOOD, other]
    for given in ([f"{GOOD},{other}"], [GOOD, other, GOOD], [f"@{file}"], [f" {GOOD} , ,{other}"]):
        assert [str(peer) for peer in parse_initial_peers(given, {"GWTF_INITIAL_PEERS": "not read"})] == expected
    assert [str(peer) for peer in parse_initial_peers([], {"GWTF_INITIAL_PEERS": f"@{file}"})] == expected
    assert parse_initial_peers([], {}) == () == parse_initial_peers([], {"GWTF_INITIAL_PEERS": " "})


def test_mistakes_in_files_and_the_environment_are_located(tmp_path: Path) -> None:
    file = tmp_path / "peers.txt"
    file.write_text(f"{GOOD}\n\n{GOOD[:-3]}\n")
    with pytest.raises(InputError, match=r"peers\.txt:3"):
        parse_initial_peers([f"@{file}"], {})
    with pytest.raises(InputError, match="GWTF_INITIAL_PEERS: nonsense"):
        parse_initial_peers([], {"GWTF_INITIAL_PEERS": "nonsense"})
    with pytest.raises(InputError, match="readable file"):
        parse_initial_peers([f"@{tmp_path / 'none'}"], {})
    file.write_text("# nothing\n")
    with pytest.raises(InputError, match="lists no multiaddr"):
        parse_initial_peers([f"@{file}"], {})


def test_listen_addresses_have_no_peer_id() -> None:
    given = ["/ip4/0.0.0.0/tcp/0,/ip6/::/tcp/31337", "/ip4/0.0.0.0/udp/31337/quic-v1"]
    expected = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/31337", "/ip4/0.0.0.0/udp/31337/quic-v1")
    assert parse_listen_maddrs(given, "--host_maddrs") == expected
    with pytest.raises(InputError, match=r"--host_maddrs: .*expected /ip4/0\.0\.0\.0/tcp/31337"):
        parse_listen_maddrs([GOOD], "--host_maddrs")
    with pytest.raises(InputError, match="port 0 cannot be announced"):
        parse_listen_maddrs(["/ip4/1.2.3.4/tcp/0"], "--announce_maddrs", announced=True)


def test_quic_of_the_draft_is_refused_with_the_right_spelling() -> None:
    """p2pd takes it beside another address, does not listen on it and says nothing."""
    with pytest.raises(InputError, match=r"--host_maddrs: .*/quic: .* expected /ip4/0\.0\.0\.0/udp/31337/quic-v1$"):
        parse_listen_maddrs(["/ip4/0.0.0.0/tcp/31337", "/ip4/0.0.0.0/udp/31337/quic"], "--host_maddrs")
    with pytest.raises(InputError, match=r"expected /ip4/1\.2\.3\.4/udp/5/quic-v1$"):
        parse_initial_peers([f"/ip4/1.2.3.4/udp/5/quic/p2p/{ED}"], {})
