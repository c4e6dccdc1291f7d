"""Signs of life: a peer says that its record still holds, and anybody can see that it was this peer.

Under a record that it signs, its owner puts the end of a chain of hashes, the *anchor*, which begins with a secret; each period
it tells one more link. A link is 16 bytes, nobody else can make it, and who knows the one before needs one hash to check it
(L. Lamport, Password authentication with insecure communication, CACM 24(11), 1981).
"""

from __future__ import annotations

from hashlib import blake2b

SIGN_BYTES = 16
MOST_SIGNS = 240
"""Under one anchor: an hour of periods, after which the record is signed anew."""


def sign_of_life(secret: bytes, index: int) -> bytes:
    """The link of the chain that is told as the `index`-th, 0 for the anchor."""
    assert 0 <= index <= MOST_SIGNS, "a chain has so many links"
    return _hashed(secret, MOST_SIGNS - index)


def follows(sign: bytes, known: bytes, steps: int) -> bool:
    """Whether the sign is the one so many steps after the known one."""
    return len(sign) == SIGN_BYTES and 0 < steps <= MOST_SIGNS and _hashed(sign, steps) == known


def _hashed(value: bytes, times: int) -> bytes:
    for _ in range(times):
        value = blake2b(value, digest_size=SIGN_BYTES).digest()
    return value
