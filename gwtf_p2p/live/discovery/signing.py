"""Signs records that others pass on, and checks whose they are: `protocol/wire/signed` says what travels.

The signature is over the kind of record as well as its bytes, so that what was signed as one kind is never taken for another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gwtf_p2p.live.libp2p.identity import Identity, peer_id_of_key
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import RunRecord, decode_run, encode
from gwtf_p2p.protocol.wire.signed import Signed, check_size, decode_signed

RUN = "run"
_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """A run record, whose it is (`record.owner`), and the bytes by which anybody can see that."""

    record: RunRecord
    signed: bytes

    @property
    def owner(self) -> PeerId:
        return self.record.owner


def own(identity: Identity, record: RunRecord) -> OwnedRun:
    """The record as this identity's: it owns the run. Raises ValueError when it is too large."""
    record = replace(record, owner=identity.peer_id)
    return OwnedRun(record, sign(identity, RUN, record))


def read_owned(data: bytes) -> OwnedRun:
    """Raises RemoteProtocolError for what its owner has not signed, or is no run record; OtherWireVersion."""
    signer, body = opened(data, RUN)
    record = decode_run(body)
    if record.owner != signer:
        raise RemoteProtocolError(f"run record: names the owner {record.owner!r:.60}, signed by {signer}")
    return OwnedRun(record, data)


def sign(identity: Identity, kind: str, record: object) -> bytes:
    """The bytes that travel. Raises ValueError when the record is too large."""
    body = check_size(record)
    signature = identity.key.sign(_what(kind, body), _PADDING, hashes.SHA256())
    key = identity.key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return encode(Signed(body, key, signature))


def opened(data: bytes, kind: str) -> tuple[PeerId, bytes]:
    """The signer and what it has signed. Raises RemoteProtocolError, OtherWireVersion."""
    signed = decode_signed(data)
    try:
        signer = peer_id_of_key(signed.key)
        key = serialization.load_ssh_public_key(signed.key)
        assert isinstance(key, rsa.RSAPublicKey), "a peer id is made of no other key"
        key.verify(signed.signature, _what(kind, signed.body), _PADDING, hashes.SHA256())
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise RemoteProtocolError(f"{kind} record: not signed by its key ({error or type(error).__name__})") from error
    return signer, signed.body


def _what(kind: str, body: bytes) -> bytes:
    return b"gwtf " + kind.encode() + b"\0" + body
