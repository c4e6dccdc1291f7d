"""Whether p2pd listens where its user said, before it starts and after.

libp2p opens its ports for sharing, and a host starts as long as one of its addresses can be had; what became of the others it
does not say. So a port that is taken is found before p2pd starts, and what p2pd holds is compared with what was asked after.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from gwtf_p2p.protocol.errors import InputError

_ANYWHERE = ("0.0.0.0", "::")


def check_ports(host_maddrs: Sequence[str]) -> None:
    """Raises InputError for a port that is taken: two p2pd of one user would listen on it without an error, and each connection
    would go to either of them.
    """
    for maddr in host_maddrs:
        error = _bind_error(maddr)
        if error is not None:
            raise InputError("--host_maddrs", maddr, f"cannot listen there: {error.strerror}") from error


def check_listens(asked: Sequence[str], visible: Sequence[str], announces: bool) -> None:
    """Raises InputError for an address of `asked` that the running p2pd does not listen on.

    `visible` is what p2pd names as its addresses: with `announces` they are those that it was told to name, and only ports that
    were asked for by number can be compared, by trying to take them.
    """
    for maddr in asked:
        if not (_is_held(maddr) if _port(maddr) else announces or _is_named(maddr, visible)):
            raise InputError(
                "--host_maddrs",
                maddr,
                "p2pd has started and does not listen there: expected an address of this "
                "machine over /tcp/<port> or /udp/<port>/quic-v1",
            )


def _is_held(maddr: str) -> bool:
    """Whether somebody, p2pd as `check_ports` was there before, has taken the port."""
    error = _bind_error(maddr)
    return _host(maddr)[0] not in ("ip4", "ip6") or (error is not None and error.errno == errno.EADDRINUSE)


def _is_named(maddr: str, visible: Sequence[str]) -> bool:
    kind, host = _host(maddr)
    alike = [_host(other) for other in visible if _transport(other) == _transport(maddr)]
    if kind.startswith("dns"):
        return bool(alike)
    return any(other == kind and host in (*_ANYWHERE, address) for other, address in alike)


def _bind_error(maddr: str) -> OSError | None:
    """Why the port that an address names by number cannot be taken; None when it can, or names none."""
    kind, host = _host(maddr)
    if kind not in ("ip4", "ip6") or not _port(maddr):
        return None
    layer = maddr.split("/")[3]
    family = socket.AF_INET if kind == "ip4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM if layer == "tcp" else socket.SOCK_DGRAM) as trial:
        if layer == "tcp":
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        try:
            trial.bind((host, _port(maddr)))
        except OSError as error:
            return error
    return None


def _host(maddr: str) -> tuple[str, str]:
    _, kind, host, *_ = maddr.split("/")
    return kind, host


def _port(maddr: str) -> int:
    """0: any."""
    return int(maddr.split("/")[4])


def _transport(maddr: str) -> tuple[str, ...]:
    """What carries the bytes: ("tcp",) or ("udp", "quic-v1")."""
    layer, _, *rest = maddr.partition("/p2p/")[0].rstrip("/").split("/")[3:]
    return (layer, *rest)
