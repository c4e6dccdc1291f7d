"""What a run's token is good for: proving at the greeting of a stream that one has it, and sealing the run's records.

The token itself never travels, nor anything that is the same twice: a proof is an HMAC over both peers, both sides' random
numbers and the run, and a record is encrypted under a number of its own. Keys are derived with scrypt, so that who has seen a
proof or a record can try some dozen guesses a second on a core, no more; 16 random characters are out of reach.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gwtf_p2p.protocol.ids import PeerId, RunId

LEAST_CHARACTERS, MOST_CHARACTERS = 16, 1024
NONCE_BYTES = 16
PROOF_BYTES = 32
SEALED = b"gwtf-sealed-1:"
"""What every sealed record begins with; no record in msgpack does."""

_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 1 << 26, "dklen": 32}
_RECORD_NONCE_BYTES = 12
SEAL_BYTES = len(SEALED) + _RECORD_NONCE_BYTES + 16
"""What sealing adds to a record."""


class RunSecret:
    """Of one run. Making it takes a tenth of a second: that is scrypt's purpose."""

    def __init__(self, token: str, run_id: RunId) -> None:
        key = hashlib.scrypt(token.encode(), salt=b"gwtf run " + run_id.encode(), **_SCRYPT)
        self._proof_key = hmac.digest(key, b"proof", "sha256")
        self._cipher = ChaCha20Poly1305(hmac.digest(key, b"records", "sha256"))

    def proof(self, by: str, opener: PeerId, acceptor: PeerId, numbers: bytes, purpose: int) -> bytes:
        """That whoever speaks as `by` ("opener" or "acceptor") has the token. `numbers`: the acceptor's, then the opener's."""
        said = "\0".join((by, opener, acceptor, str(purpose))).encode() + b"\0" + numbers
        return hmac.digest(self._proof_key, said, "sha256")

    def is_proof(self, given: bytes, by: str, opener: PeerId, acceptor: PeerId, numbers: bytes, purpose: int) -> bool:
        """In constant time."""
        return hmac.compare_digest(given, self.proof(by, opener, acceptor, numbers, purpose))

    def seal(self, record: bytes, key: str, publisher: PeerId) -> bytes:
        """For this DHT key and publisher only."""
        number = os.urandom(_RECORD_NONCE_BYTES)
        return SEALED + number + self._cipher.encrypt(number, record, _place(key, publisher))

    def unseal(self, sealed: bytes, key: str, publisher: PeerId) -> bytes | None:
        """The record; None for what whoever has the token has not sealed for this key and publisher."""
        if not is_sealed(sealed):
            return None
        body = sealed[len(SEALED) :]
        number, encrypted = body[:_RECORD_NONCE_BYTES], body[_RECORD_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(number, encrypted, _place(key, publisher))
        except (InvalidTag, ValueError):
            return None


def is_sealed(record: bytes) -> bool:
    """It looks like a record of a secret run."""
    return record.startswith(SEALED)


def _place(key: str, publisher: PeerId) -> bytes:
    return f"{key}\0{publisher}".encode()
