"""Who is given state: weights, the optimizer's moments, and word of which of them are kept.

| who asks | gets |
|---|---|
| may not take part, is barred or convicted | nothing |
| holds a stage, by its signed record or by what this peer has taken part in | whatever is here |
| has a signed record that says that it takes no part (a newcomer's first, `gwtf generate`) | word, and embedding and head |
| has neither | nothing |

A record takes seconds to get about, so whoever has none in this peer's view, or one that is not enough (a newcomer has begun
with it), waits until the records have been read once more since it asked, and is refused only then. `LEAST_PERIOD_S` bounds how
often they are read for that, whoever asks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust.gate import Gate

LEAST_PERIOD_S = 1.0
"""Between two readings of the records, where somebody is waiting for the second."""

MOST_WAITING = 1024
"""Peers that wait for a reading; the one that has asked first is forgotten, and waits for another."""


class WhyNoState(Enum):
    """What an asker can do about it: nothing, ask for something else, or publish its record and ask again."""

    SHUT_OUT = "shut_out"
    NOT_FOR_CLIENTS = "not_for_clients"
    NO_RECORD = "no_record"


@dataclass(frozen=True, slots=True)
class NoState:
    """State is not given; `reason` in words."""

    why: WhyNoState
    reason: str


class StateAccess:
    """Of one donor. Times are of any one clock, in seconds."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._waiting: OrderedDict[PeerId, float] = OrderedDict()
        self._read_at = -1.0

    def refusal(self, peer: PeerId, stage: Stage | None) -> NoState | None:
        """As far as is known now; `stage` None: it asks for word of what is kept. None when it is given."""
        gate = self._gate
        if not gate.admits(peer):
            return NoState(WhyNoState.SHUT_OUT, gate.entry.refusal(peer) or "barred")
        view = gate.view
        if gate.known.is_known(peer) or (view is not None and peer in view.records):
            return None
        if view is None or peer not in view.clients:
            return NoState(WhyNoState.NO_RECORD, "it has no record in this run")
        if stage in (None, DATA_STAGE):
            return None
        return NoState(WhyNoState.NOT_FOR_CLIENTS, f"its record says that it takes no part: nothing of stage {stage}")

    def asked(self, peer: PeerId, stage: Stage | None, now: float) -> tuple[NoState | None, bool]:
        """Why it gets nothing, and whether that stands: if not, its record may be seen once the records are read again."""
        refusal = self.refusal(peer, stage)
        if refusal is None or refusal.why is WhyNoState.SHUT_OUT:
            self._waiting.pop(peer, None)
            return refusal, True
        asked_at = self._waiting.setdefault(peer, now)
        if self._read_at > asked_at:
            del self._waiting[peer]
            return refusal, True
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popitem(last=False)
        return refusal, False

    def read(self, began_at: float) -> None:
        """The records have been read, from `began_at` on, and what is known of the others is that."""
        self._read_at = began_at
