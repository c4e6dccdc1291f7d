"""Addresses of peers as users write them: multiaddrs, checked before anything is started.

An initial peer is given as one multiaddr, a comma list, or `@file` (one or more per line, `#` starts a comment); when none is
given, `GWTF_INITIAL_PEERS` is read in the same way. Understood are /ip4, /ip6, /dns, /dns4 and /dns6 over /tcp, and over /udp
with /quic-v1 (RFC 9000; /quic is its draft 29, which p2pd neither dials nor listens on any more, without a word); the peer id
is base58, `12D3Koo...` or `Qm...`. The address of a peer behind a circuit relay ends in `/p2p-circuit/p2p/<id>`. Whatever is
wrong is named, with the form that was expected (InputError).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PEER_ID, PeerId

EXPECTED_PEER = "expected /ip4/1.2.3.4/tcp/31337/p2p/12D3Koo…"
EXPECTED_LISTEN = "expected /ip4/0.0.0.0/tcp/31337 or /ip4/0.0.0.0/udp/31337/quic-v1"
ENVIRONMENT_VARIABLE = "GWTF_INITIAL_PEERS"

_HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_PEER_ID = re.compile(PEER_ID)
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?")


@dataclass(frozen=True, slots=True)
class InitialPeer:
    """One address of a peer. `transport` is tcp or quic-v1; with a circuit relay, host and port are the circuit
    relay's."""

    text: str
    host: str
    port: int
    transport: str
    peer: PeerId
    relay: PeerId | None = None

    def __str__(self) -> str:
        return self.text


def parse_initial_peers(
    given: Sequence[str], environment: Mapping[str, str], where: str = "--initial_peers"
) -> tuple[InitialPeer, ...]:
    """All addresses in `given` (see the module), else those of the environment; doubles are dropped.

    Raises InputError that names the first bad address or the file that cannot be read.
    """
    if not given and environment.get(ENVIRONMENT_VARIABLE, "").strip():
        given, where = [environment[ENVIRONMENT_VARIABLE]], ENVIRONMENT_VARIABLE
    peers = [parse_initial_peer(text, place) for item in given for text, place in _split(item, where)]
    return tuple(dict.fromkeys(peers))


def parse_initial_peer(text: str, where: str = "--initial_peers") -> InitialPeer:
    """Raises InputError."""
    normal = text.replace("/ipfs/", "/p2p/")
    address, *ids = normal.split("/p2p/")
    if not ids:
        raise InputError(where, text, f"no peer id: {EXPECTED_PEER}")
    at = _parse_address(address, text, where, EXPECTED_PEER)
    if at.port == 0:
        raise InputError(where, text, f"port 0 cannot be dialled: {EXPECTED_PEER}")
    relay: PeerId | None = None
    if len(ids) == 2 and ids[0].endswith("/p2p-circuit"):
        relay = _parse_id(ids[0].removesuffix("/p2p-circuit"), text, where)
    elif len(ids) != 1:
        raise InputError(where, text, f"one peer id, or two with /p2p-circuit between them: {EXPECTED_PEER}")
    return InitialPeer(normal, at.host, at.port, at.transport, _parse_id(ids[-1].rstrip("/"), text, where), relay)


def parse_listen_maddrs(given: Sequence[str], where: str, *, announced: bool = False) -> tuple[str, ...]:
    """Addresses to listen on (port 0: any) or to announce (`announced`: never port 0), without a peer id. Raises InputError."""
    items = [text.strip() for item in given for text in item.split(",") if text.strip()]
    for text in items:
        if _parse_address(text, text, where, EXPECTED_LISTEN).port == 0 and announced:
            raise InputError(where, text, f"port 0 cannot be announced: {EXPECTED_LISTEN}")
    return tuple(items)


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens: `kind` of host (ip4, ip6, dns...), host, port (0: any) and transport (tcp or quic-v1)."""

    kind: str
    host: str
    port: int
    transport: str


def parse_listen_maddr(text: str, where: str) -> Address:
    """The parts of one address, with or without a peer id at its end. Raises InputError."""
    return _parse_address(text.partition("/p2p/")[0], text, where, EXPECTED_LISTEN)


def _split(item: str, where: str) -> list[tuple[str, str]]:
    """Single addresses of one argument, each with the place where it stands."""
    if not item.startswith("@"):
        return [(text.strip(), where) for text in item.split(",") if text.strip()]
    path = Path(item[1:]).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(where, item, f"expected a readable file of multiaddrs ({error})") from error
    found = [
        (text, f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        for text in line.partition("#")[0].replace(",", " ").split()
    ]
    if not found:
        raise InputError(where, item, f"the file lists no multiaddr: {EXPECTED_PEER}")
    return found


def _parse_address(address: str, text: str, where: str, expected: str) -> Address:
    """The parts of `/ip4/H/tcp/P` and its relatives."""
    parts = address.rstrip("/").split("/")
    if len(parts) not in (5, 6) or parts[0] or parts[1] not in _HOST_KINDS:
        raise InputError(where, text, expected)
    _, host_kind, host, layer, port, *rest = parts
    transport = {("tcp",): "tcp", ("udp", "quic-v1"): "quic-v1"}.get((layer, *rest))
    if (layer, *rest) == ("udp", "quic"):
        right = f"/{host_kind}/{host}/udp/{port}/quic-v1"
        raise InputError(where, text, f"/quic is draft 29, which libp2p has given up: expected {right}")
    if transport is None:
        raise InputError(where, text, f"{'/'.join([layer, '<port>', *rest])} is no transport of ours: {expected}")
    if not _is_host(host_kind, host):
        raise InputError(where, text, f"{host!r} is no /{host_kind} host: {expected}")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise InputError(where, text, f"{port!r} is no port: {expected}")
    return Address(host_kind, host, int(port), transport)


def _is_host(kind: str, host: str) -> bool:
    if kind.startswith("dns"):
        return _DNS_NAME.fullmatch(host) is not None
    try:
        return ipaddress.ip_address(host).version == int(kind[-1])
    except ValueError:
        return False


def _parse_id(text: str, maddr: str, where: str) -> PeerId:
    if _PEER_ID.fullmatch(text) is None:
        raise InputError(where, maddr, f"{text!r} is no peer id: {EXPECTED_PEER}")
    return PeerId(text)
