"""What was made of the newest record of each owner, so that a record is checked and decoded once.

Everybody's record is read again every few seconds and is a new one every period. Only the newest of an owner is worth
remembering, and not its bytes: a digest tells whether it is the same one. The digest is keyed by nothing, since whoever can
find two records with one digest of 16 bytes signs both of them itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST_OWNERS = 8192
"""More than a reader looks at under a few keys: with fewer, a flood of records would have all of them checked each time."""


class NewestByOwner(Generic[K, V]):
    """One thing for each of at most `MOST_OWNERS` owners; whose was put longest ago makes room."""

    def __init__(self, most: int = MOST_OWNERS) -> None:
        self._most = most
        self._newest: dict[K, tuple[bytes, V]] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def get(self, owner: K, record: bytes) -> V | None:
        """What was put for these very bytes, None when another record of this owner, or none, was put last."""
        known = self._newest.get(owner)
        return known[1] if known is not None and known[0] == _digest(record) else None

    def put(self, owner: K, record: bytes, made: V) -> None:
        """In the place of what was made of this owner's record before."""
        self._newest.pop(owner, None)
        self._newest[owner] = _digest(record), made
        if len(self._newest) > self._most:
            del self._newest[next(iter(self._newest))]


def _digest(record: bytes) -> bytes:
    return blake2b(record, digest_size=16).digest()
