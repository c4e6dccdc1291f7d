"""Signs records that others pass on, and checks whose they are: `protocol/wire/signed` says what travels.

The signature is over the kind of record as well as its bytes, so that what was signed as one kind is never taken for another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gwtf_p2p.live.libp2p.identity import Identity, peer_id_of_key
from gwtf_p2p.live.libp2p.signatures import NotSigned, public_key, signature, signer_of
from gwtf_p2p.protocol.errors import OtherWireVersion, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import RunRecord, decode_run, encode
from gwtf_p2p.protocol.wire.signed import Signed, check_size, decode_signed

RUN = "run"


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """A run record, whose it is (`record.owner`), and the bytes by which anybody can see that."""

    record: RunRecord
    signed: bytes

    @property
    def owner(self) -> PeerId:
        return self.record.owner


class ForeignRun(OtherWireVersion):
    """A run record of another wire version, which `signer` has signed."""

    def __init__(self, error: OtherWireVersion, signer: PeerId) -> None:
        super().__init__("RunRecord", error.ours, error.theirs)
        self.signer = signer


def own(identity: Identity, record: RunRecord) -> OwnedRun:
    """The record as this identity's: it owns the run. Raises ValueError when it is too large."""
    record = replace(record, owner=identity.peer_id)
    return OwnedRun(record, sign(identity, RUN, record))


def read_owned(data: bytes) -> OwnedRun:
    """Raises RemoteProtocolError for what its owner has not signed, or is no run record; OtherWireVersion, which is
    ForeignRun where its signer can be read."""
    signer, body = opened(data, RUN)
    try:
        record = decode_run(body)
    except OtherWireVersion as error:
        raise ForeignRun(error, signer) from error
    if record.owner != signer:
        raise RemoteProtocolError(f"run record: names the owner {record.owner!r:.60}, signed by {signer}")
    return OwnedRun(record, data)


def sign(identity: Identity, kind: str, record: object) -> bytes:
    """The bytes that travel. Raises ValueError when the record is too large."""
    body = check_size(record)
    return encode(Signed(body, public_key(identity), signature(identity, _what(kind, body))))


def opened(data: bytes, kind: str, by: PeerId | None = None) -> tuple[PeerId, bytes]:
    """The signer and what it has signed; `by`: of no other signer, before any signature is checked. Raises RemoteProtocolError,
    OtherWireVersion."""
    signed = decode_signed(data)
    try:
        if by is not None and (named := peer_id_of_key(signed.key)) != by:
            raise RemoteProtocolError(f"{kind} record: signed by {named}, expected {by}")
        return signer_of(signed.key, signed.signature, _what(kind, signed.body)), signed.body
    except (NotSigned, ValueError) as error:
        raise RemoteProtocolError(f"{kind} record: {error}") from error


def _what(kind: str, body: bytes) -> bytes:
    return b"gwtf " + kind.encode() + b"\0" + body
