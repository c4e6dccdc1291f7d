"""What kind of NAT a host is behind, found with plain sockets, as a STUN client finds it (RFC 5780).

`first` and `second` are public hosts. Mapping: which public port do they see, on each of their ports? Filtering: who may send
to that port? That a datagram does not come is known without waiting: what is sent after it by somebody who may, has come.
"""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from experiments.lab.lab import Lab

LIMIT_S = 10.0
"""How long to wait for what must come."""

DROPPED_S = 0.5
"""How long an unanswered TCP connection is given: a SYN that passes is answered within a millisecond here."""

PORT, OTHER_PORT = 7001, 7002


@dataclass(frozen=True)
class NatBehaviour:
    """In the words of RFC 4787: `independent` of the other end, or dependent on its `address`, or on `address_and_port`."""

    mapping: str
    filtering: str


def udp_behaviour(lab: Lab, host: str, first: str = "first", second: str = "second") -> NatBehaviour:
    """Raises TimeoutError when the host cannot reach the public hosts at all."""
    with ExitStack() as stack:
        inner = stack.enter_context(lab.socket(host, socket.SOCK_DGRAM, PORT))
        here = {
            (name, port): stack.enter_context(lab.socket(name, socket.SOCK_DGRAM, port))
            for name in (first, second)
            for port in (PORT, OTHER_PORT)
        }
        for outer in (inner, *here.values()):
            outer.settimeout(LIMIT_S)
        inner.sendto(b"hello", (lab.public_address(first), PORT))
        _, seen = here[first, PORT].recvfrom(64)
        # Filtering, before the host has sent to anybody else.
        here[second, PORT].sendto(b"stranger", seen)
        here[first, OTHER_PORT].sendto(b"other port", seen)
        passed: set[bytes] = set()
        for marker in (b"known", b"known, again"):  # twice: two senders' datagrams may overtake each other by microseconds
            here[first, PORT].sendto(marker, seen)
            while marker not in passed:
                passed.add(inner.recvfrom(64)[0])
        ports = {(first, PORT): seen[1]}
        for name, port in ((first, OTHER_PORT), (second, PORT)):
            inner.sendto(b"hello", (lab.public_address(name), port))
            ports[name, port] = here[name, port].recvfrom(64)[1][1]
    return NatBehaviour(_mapping(ports, first, second), _filtering(passed))


def tcp_behaviour(lab: Lab, host: str, first: str = "first", second: str = "second") -> NatBehaviour:
    """The same with connections from one port of the host, which also listens on it, as libp2p does."""
    with ExitStack() as stack:
        listener = stack.enter_context(lab.socket(host, socket.SOCK_STREAM, PORT))
        listener.listen()
        servers = {
            (name, port): stack.enter_context(lab.socket(name, socket.SOCK_STREAM, port))
            for name in (first, second)
            for port in (PORT, OTHER_PORT)
        }
        for server in servers.values():
            server.listen()
            server.settimeout(LIMIT_S)
        ports: dict[tuple[str, int], int] = {}

        def connect(name: str, port: int) -> tuple[str, int]:
            out = stack.enter_context(lab.socket(host, socket.SOCK_STREAM, PORT))
            out.settimeout(LIMIT_S)
            out.connect((lab.public_address(name), port))
            accepted, seen = servers[name, port].accept()
            stack.enter_context(accepted)
            ports[name, port] = seen[1]
            return str(seen[0]), int(seen[1])

        seen = connect(first, PORT)
        passed = {
            text
            for (name, port), text in (((second, 7003), b"stranger"), ((first, 7003), b"other port"))
            if _connects(lab, name, port, seen)
        }
        connect(first, OTHER_PORT)
        connect(second, PORT)
    return NatBehaviour(_mapping(ports, first, second), _filtering(passed))


def _connects(lab: Lab, name: str, port: int, to: tuple[str, int]) -> bool:
    with lab.socket(name, socket.SOCK_STREAM, port) as caller:
        caller.setblocking(False)
        caller.connect_ex(to)
        _, ready, _ = select.select([], [caller], [], DROPPED_S)
        return bool(ready) and caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def _mapping(ports: dict[tuple[str, int], int], first: str, second: str) -> str:
    if len(set(ports.values())) == 1:
        return "independent"
    return "address" if ports[first, PORT] == ports[first, OTHER_PORT] else "address_and_port"


def _filtering(passed: set[bytes]) -> str:
    if b"stranger" in passed:
        return "independent"
    return "address" if b"other port" in passed else "address_and_port"
