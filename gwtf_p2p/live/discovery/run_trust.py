"""Whose run record a peer believes, and what it says where there is none that it may."""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId


class RunConflict(RemoteProtocolError):
    """The run records that there are under one run id are not of the owner that is expected, or nobody is expected and they are
    of several. Exit code 5."""

    exit_code = 5

    def __init__(self, run_id: RunId, reason: str) -> None:
        super().__init__(f"run {run_id}: {reason}")


class TokenNeeded(RunConflict):
    """The run is secret, and this peer has no token for it, or another one."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whose run record is believed: `wanted`, whom the user names; `joined`, whose run this peer has joined before."""

    wanted: PeerId | None = None
    joined: PeerId | None = None


ANYBODY = Trusted()
