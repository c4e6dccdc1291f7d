"""What a peer's identity signs, and who has signed: RSA-PSS with SHA-256, by the key whose hash the peer id is.

A signature costs a millisecond, a check a tenth of it, with the keys that `identity` takes for one; a key is parsed once. What
is signed says of what kind it is, so that a signature of one kind is never taken for one of another.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gwtf_p2p.live.libp2p.identity import Identity, load_public_key, peer_id_of_public
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
_KEYS_KEPT = 4096


class NotSigned(RemoteProtocolError):
    """There is no key that a peer id is made of, or it has not signed this."""


def public_key(identity: Identity) -> bytes:
    """As OpenSSH writes it; the peer id is its hash."""
    return identity.key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def signature(identity: Identity, data: bytes) -> bytes:
    """Of these bytes, by this identity."""
    return identity.key.sign(data, _PADDING, hashes.SHA256())


def signer_of(key_ssh: bytes, signed_with: bytes, data: bytes) -> PeerId:
    """The peer whose key this is, and which has signed these bytes. Raises NotSigned."""
    try:
        peer, key = read_key(key_ssh)
        key.verify(signed_with, data, _PADDING, hashes.SHA256())
    except (InvalidSignature, ValueError) as error:
        raise NotSigned(f"not signed by its key ({error or type(error).__name__})") from error
    return peer


@lru_cache(maxsize=_KEYS_KEPT)
def read_key(ssh: bytes) -> tuple[PeerId, rsa.RSAPublicKey]:
    """The peer and its key, as OpenSSH writes it. Raises ValueError."""
    key = load_public_key(ssh)
    return peer_id_of_public(key), key
