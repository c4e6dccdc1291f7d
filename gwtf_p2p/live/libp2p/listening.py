"""Whether p2pd listens where its user said, before it starts and after.

libp2p opens its ports for sharing, and a host starts as long as one of its addresses can be had; what became of the others it
does not say. So a port that is taken is found before p2pd starts, and what p2pd holds is compared with what was asked after.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from gwtf_p2p.live.libp2p.maddrs import Address, parse_listen_maddr
from gwtf_p2p.protocol.errors import InputError

_ANYWHERE = ("0.0.0.0", "::")


def check_ports(host_maddrs: Sequence[str]) -> None:
    """Raises InputError for a port that is taken: two p2pd of one user would listen on it without an error, and each connection
    would go to either of them.
    """
    for maddr in host_maddrs:
        address = _known(maddr)
        error = _bind_error(address) if address is not None else None
        if error is not None:
            raise InputError("--host_maddrs", maddr, f"cannot listen there: {error.strerror}") from error


def check_listens(asked: Sequence[str], visible: Sequence[str], announces: bool) -> None:
    """Raises InputError for an address of `asked` that the running p2pd does not listen on.

    `visible` is what p2pd names as its addresses: with `announces` they are those that it was told to name, and only ports that
    were asked for by number can be compared, by trying to take them.
    """
    named = [] if announces else [known for maddr in visible if (known := _known(maddr)) is not None]
    for maddr in asked:
        address = _known(maddr)
        if address is None or not (_is_held(address) if address.port else announces or any(_is_of(n, address) for n in named)):
            raise InputError(
                "--host_maddrs",
                maddr,
                "p2pd has started and does not listen there: expected an address of this "
                "machine over /tcp/<port> or /udp/<port>/quic-v1",
            )


def _known(maddr: str) -> Address | None:
    """None for what is none of our addresses: p2pd names circuits and other transports besides."""
    try:
        return parse_listen_maddr(maddr, "--host_maddrs")
    except InputError:
        return None


def _is_of(named: Address, asked: Address) -> bool:
    """Whether what p2pd names comes of listening there."""
    if named.transport != asked.transport:
        return False
    return asked.kind.startswith("dns") or (named.kind == asked.kind and asked.host in (*_ANYWHERE, named.host))


def _is_held(address: Address) -> bool:
    """Whether somebody, p2pd as `check_ports` was there before, has taken the port."""
    error = _bind_error(address)
    return address.kind not in ("ip4", "ip6") or (error is not None and error.errno == errno.EADDRINUSE)


def _bind_error(address: Address) -> OSError | None:
    """Why the port that an address names by number cannot be taken; None when it can, or names none."""
    if address.kind not in ("ip4", "ip6") or not address.port:
        return None
    is_tcp = address.transport == "tcp"
    family = socket.AF_INET if address.kind == "ip4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) as trial:
        if is_tcp:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        try:
            trial.bind((address.host, address.port))
        except OSError as error:
            return error
    return None
