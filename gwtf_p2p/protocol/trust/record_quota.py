"""How many records under one DHT key a reader looks at: anybody can publish there, under as many keys of its own as it makes.

Those that were read before and are still there come first, so whoever was there before a flood stays in sight; then as many
others as there is room for. Those that are left out are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")

MOST_RECORDS = 1024
"""Under one key. A stage has at most a few hundred peers where swarms are large."""


class RecordQuota:
    """Of one reader; owners are the subkeys under which records are published."""

    def __init__(self, most: int = MOST_RECORDS) -> None:
        self._most = most
        self._read: dict[str, frozenset[bytes]] = {}

    def chosen(self, key: str, records: Mapping[bytes, V]) -> list[tuple[bytes, V]]:
        """Those to look at, at most `most` of them."""
        if len(records) <= self._most:
            owners = list(records)
        else:
            before = self._read.get(key, frozenset())
            owners = sorted(records, key=lambda owner: owner not in before)[: self._most]
        self._read[key] = frozenset(owners)
        return [(owner, records[owner]) for owner in owners]
