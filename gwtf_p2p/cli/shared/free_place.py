"""Where a peer settles that was told neither a port nor an identity: at the default ones, or at the next that are free.

Several peers of one machine need a port and an identity each. Whoever gives neither gets the first identity file that no other
process holds, and the first port from there on that nobody listens on, and is told so in one line. A port or a file that was
given is taken as it is, and refused where it is in use; so is the default port of a peer that announces an address, because its
owner has opened that port and told others of it.

A peer takes seconds from this choice until it listens, in which another one may choose. So each choice is *claimed*: a lock on
an empty file in the folder of identities, which the kernel gives back when the process ends, however it ends.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from gwtf_p2p.protocol.errors import InputError

MOST_TRIED = 64
"""How many ports, and identities, are tried before a peer gives up."""


def settle_port(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """The port to listen on: `--port`, else the default or the next free one. Raises InputError."""
    if args.port is not None:
        return int(args.port)
    default: int = args.default_port
    if args.host_maddrs is not None or args.public_ip or args.announce_maddrs:
        return default
    from gwtf_p2p.live.libp2p.identity import state_dir

    for port in range(default, default + MOST_TRIED):
        if _is_free(port) and _claim(state_dir(environment) / "claims" / f"port_{port}"):
            if port != default:
                print(f"port {default} is in use: this peer listens on {port} (--port chooses)", file=sys.stderr)
            return port
    raise InputError("--port", str(default), f"in use, as are the {MOST_TRIED - 1} after it; give another one (0: any)")


def settle_identity(given: Path | None, environment: Mapping[str, str]) -> Path:
    """The identity file to use: the one given, else the default or the next that no process holds. Raises InputError."""
    from gwtf_p2p.live.libp2p.identity import default_identity_path, is_in_use

    if given is not None:
        return given
    default = default_identity_path(environment)
    for number in range(1, MOST_TRIED):
        path = default if number == 1 else default.with_stem(f"{default.stem}_{number}")
        if not is_in_use(path) and _claim(path.parent / "claims" / path.stem):
            if path != default:
                print(f"identity {default} is in use: this peer is {path} (--identity_path chooses)", file=sys.stderr)
            return path
    raise InputError("--identity_path", str(default), f"in use, as are the {MOST_TRIED - 2} after it; give another one")


def _is_free(port: int) -> bool:
    """Nobody listens on this TCP port, nor has the UDP port of QUIC. Connections that have ended do not count."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with closing(socket.socket(socket.AF_INET, kind)) as trial:
            if kind is socket.SOCK_STREAM:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("0.0.0.0", port))
            except OSError:
                return False
    return True


def _claim(path: Path) -> bool:
    """Whether this process has this file's lock now. The descriptor stays open on purpose: its end is that of the process."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return True  # nowhere to write: whoever creates the identity is told, and a port that is taken is refused
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)  # a file system without locks
    return True
