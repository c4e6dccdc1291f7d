"""Whose run record a peer believes, and what it says where there is none that it may."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gwtf_p2p.live.discovery.signing import ForeignRun, OwnedRun
from gwtf_p2p.protocol.errors import OtherWireVersion, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.trust.owners import choose_owner
from gwtf_p2p.protocol.wire.records import RunRecord, encode

logger = logging.getLogger(__name__)


class RunConflict(RemoteProtocolError):
    """The run records that there are under one run id are not of the owner that is expected, or nobody is expected and they are
    of several. Exit code 5."""

    exit_code = 5

    def __init__(self, run_id: RunId, reason: str) -> None:
        super().__init__(f"run {run_id}: {reason}")


class TokenNeeded(RunConflict):
    """The run is secret, and this peer has no token for it, or another one."""


class NotSecret(RunConflict):
    """This peer has a token, and the run's records are not sealed."""

    def __init__(self, run_id: RunId) -> None:
        super().__init__(run_id, "this run is not secret: leave --token (GWTF_TOKEN) out")


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whose run record is believed: `wanted`, whom the user names; `joined`, whose run this peer has joined before."""

    wanted: PeerId | None = None
    joined: PeerId | None = None

    @property
    def named(self) -> PeerId | None:
        """The only owner that counts; None when nobody is named."""
        return self.wanted or self.joined


ANYBODY = Trusted()


def believed(run_id: RunId, found: Mapping[PeerId, Sequence[OwnedRun]], trusted: Trusted) -> OwnedRun | None:
    """Of the records that there are, by owner, the newest of the owner that is to be believed (`protocol/trust/owners`); None
    when there is none at all. Raises RunConflict."""
    choice = choose_owner(found, trusted.wanted, trusted.joined)
    if choice.owner is None:
        if choice.is_conflict:
            raise RunConflict(run_id, choice.reason)
        return None
    if choice.others:
        logger.warning("run %s: taken from %s; passed over: %s", run_id, choice.reason, ", ".join(choice.others))
    runs = found[choice.owner]
    if len({_contents(run.record) for run in runs}) > 1:
        raise RunConflict(run_id, f"its owner {choice.owner} has signed different run records")
    return max(runs, key=lambda run: run.record.sequence_number)


def foreign_runs(foreign: Mapping[PeerId, OtherWireVersion], trusted: Trusted) -> list[OtherWireVersion]:
    """Of the records of another wire version, by who publishes them, those that may be of the run that is meant: its owner's,
    where one is named and it can be seen who has signed them."""
    named = trusted.named
    errors = (foreign[peer] for peer in sorted(foreign))
    return [error for error in errors if named is None or not isinstance(error, ForeignRun) or error.signer == named]


def _contents(record: RunRecord) -> bytes:
    """What two owners of one run must agree on."""
    return encode(replace(record, sequence_number=0))
