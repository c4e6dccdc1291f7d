"""What is known of the path to one peer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gwtf_p2p.live.nat import hole_punch as punch
from gwtf_p2p.protocol.wire.records import PathType

FIRST_RETRY_S = 30.0
"""Until the next try for a better path, after the first one."""


@dataclass(slots=True)
class Way:
    """What is known of the path to one peer. `sent_bytes`, since `opened_s`, counts against the circuit's budget."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    kind: PathType | None = None
    told: PathType | None = None
    sent_bytes: int = 0
    opened_s: float = 0.0
    changing_until_s: float = 0.0
    next_try_s: float = 0.0
    retry_s: float = FIRST_RETRY_S
    is_fragile: bool = False
    is_trying: bool = False
    is_wanted: bool = False
    doors: list[punch.Splice] = field(default_factory=list)
