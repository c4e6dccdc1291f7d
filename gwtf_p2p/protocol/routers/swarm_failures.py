"""How the official SWARM code takes a failure, on this project's machines: long fixed time-outs, and no ban.

It waits 30 s for a forward and 75 s for a backward, whatever was measured, and a peer that failed may be chosen again by the
next microbatch. A connection that is refused or breaks is noticed at once, as everywhere. So a killed peer costs little, and
a frozen one stalls every microbatch that is sent to it for half a minute.

Deviation: when a time-out passes, the peer is asked whether it lives before the microbatch goes elsewhere, which adds the time
of the question (up to 3 s), and keeps a slow peer from being given up. The stage group's average leaves out a peer that was
found dead, in any case: only routing forgets.
"""

from __future__ import annotations

from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.effects import Effect
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId

TIMEOUTS_S = {"push": 30.0, "complete": 30.0, "backward": 75.0}
"""What the machines wait for: an input to arrive, a forward to be computed and handed on, a gradient to come back."""


class FixedTimings(Timings):
    """Measures as ever (records need it), but waits for constants."""

    def deadline_s(self, key: tuple[object, ...], prior_s: float) -> float:
        fixed = TIMEOUTS_S.get(str(key[0]))
        return super().deadline_s(key, prior_s) if fixed is None else fixed


class ForgetfulLiveness(Liveness):
    """A lost peer is routed to like any other, and found lost again. Silence alone is no reason to ask."""

    heartbeat_s = 0.0

    @property
    def excluded(self) -> frozenset[PeerId]:
        return self.suspected

    def suspect(self, peer: PeerId, reason: str, now: float, microbatches: tuple[MicrobatchId, ...], out: list[Effect]) -> None:
        self.lost_peers.forget(peer)
        super().suspect(peer, reason, now, microbatches, out)
