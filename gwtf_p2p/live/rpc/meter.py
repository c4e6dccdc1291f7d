"""Bytes that one peer has put on its streams: payloads by the kind of their message, and everything else.

Counted where they are written, at the sender only, so that the sum over all peers counts each byte once. What libp2p adds
(encryption, multiplexing, acknowledgements of TCP) is not in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Meter:
    """By the `kind` of the header: payload bytes that left, how many payloads arrived whole, and the bytes of those.

    `other_bytes` are frames, headers and small messages. `direct_bytes` of the payloads did not go through p2pd.
    """

    payload_bytes: Counter[str] = field(default_factory=Counter)
    arrived: Counter[str] = field(default_factory=Counter)
    arrived_bytes: Counter[str] = field(default_factory=Counter)
    other_bytes: int = 0
    direct_bytes: int = 0

    def pushed(self, kind: str, sent_bytes: int, whole_bytes: int | None) -> None:
        """One push has ended; `whole_bytes` is None unless the payload arrived."""
        self.payload_bytes[kind] += sent_bytes
        if whole_bytes is not None:
            self.arrived[kind] += 1
            self.arrived_bytes[kind] += whole_bytes
