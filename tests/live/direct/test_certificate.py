"""Certificates of libp2p's TLS: ours say whose they are, p2pd takes them, and its own are read."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.live.direct.certificate import MOST_BYTES, Certificate, context_for, make_certificate, peer_of
from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.protocol.errors import RemoteProtocolError
from tests.live.conftest import DEADLINE_S, LOCAL

OID = bytes.fromhex("060a2b0601040183a25a0101")
MULTISTREAM, TLS = b"/multistream/1.0.0\n", b"/tls/1.0.0\n"


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return create_identity(tmp_path / "own.key")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, bytes]:
    identity = create_identity(tmp_path_factory.mktemp("identity") / "own.key")
    return identity, make_certificate(identity).der


def test_it_says_whose_it_is(identity: Identity) -> None:
    assert peer_of(make_certificate(identity).der) == identity.peer_id


def test_another_key_than_the_signed_one_is_refused(identity: Identity, tmp_path: Path) -> None:
    """The extension of one certificate in another one: whoever copies it has not the peer's key."""
    mine, theirs = make_certificate(identity).der, make_certificate(create_identity(tmp_path / "other.key")).der
    forged = bytearray(theirs)
    at, of = mine.index(OID), theirs.index(OID)
    forged[of : of + 500] = mine[at : at + 500]
    with pytest.raises(RemoteProtocolError, match="InvalidSignature"):
        peer_of(bytes(forged))


@given(st.integers(0, 5000), st.integers(0, 255))
def test_damaged_bytes_are_refused_or_name_the_same_peer(one: tuple[Identity, bytes], at: int, value: int) -> None:
    identity, damaged = one[0], bytearray(one[1])
    damaged[at % len(damaged)] = value
    with suppress(RemoteProtocolError):
        assert peer_of(bytes(damaged)) == identity.peer_id


def test_a_long_one_is_not_read() -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        peer_of(bytes(MOST_BYTES + 1))


async def test_p2pd_takes_it_and_shows_one_that_is_read(identity: Identity, tmp_path: Path) -> None:
    """The real libp2p at the other end: it goes on behind the handshake only with a certificate that it believes."""
    async with running_daemon(LOCAL, create_identity(tmp_path / "p2pd.key")) as daemon:
        port = int((await daemon.maddrs())[0].split("/")[4])
        shown, said = await asyncio.to_thread(shake_hands, port, make_certificate(identity))
        assert peer_of(shown) == daemon.peer_id
        assert said.startswith(b"\x13" + MULTISTREAM)


def shake_hands(port: int, own: Certificate) -> tuple[bytes, bytes]:
    """What p2pd shows, and what it says once it has seen ours."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        connection.sendall(b"\x13" + MULTISTREAM + b"\x0b" + TLS)
        said = b""
        while not said.endswith(TLS):
            said += connection.recv(1024)
        with trusting(own).wrap_socket(connection, server_hostname="any") as stream:
            shown = stream.getpeercert(binary_form=True)
            assert shown is not None
            stream.sendall(b"\x13" + MULTISTREAM)
            return shown, stream.recv(1024)


def trusting(own: Certificate) -> ssl.SSLContext:
    """Of a client that does not know yet whom it will meet, as p2pd's own is."""
    context = context_for(own, own.der, is_server=False)
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["libp2p"])
    return context
