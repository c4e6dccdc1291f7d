"""When a planned microbatch leaves its data peer: not by the plan's clock, but as fast as the swarm is seen to go.

A plan releases a microbatch when the one before it on its way through the first stage peer is forecast to begin there. Where
forecasts are too slow (nothing but a crowded start was measured yet), a clock would let that peer stand idle. So a data peer
goes by what it sees. When a stage peer of stage 1 has handed on a microbatch, it has begun it, so the plan has come, there, at
least as far as the release of the one that follows. If the plan is ahead of the clock then, this data peer's next one is due at
once when nothing of its own waits there, and the later ones as much sooner as the plan was ahead. Of stage peers that have not
handed on anything yet, the others' lead is assumed.

A plan that is on time, or too fast, is kept to the letter. No more than `MOST_AHEAD` that wait at the first stage peer are
followed by an early one: more would only share the line with what is under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.view.plans import IterationPlan, PlannedFlow

MOST_AHEAD = 1
"""Own microbatches at a first stage peer behind which one may leave early."""


@dataclass(frozen=True, slots=True)
class _Sign:
    """This microbatch of the data peer's share has been handed on, at this moment."""

    index: int
    at: float


@dataclass
class Releases:
    """Of data peer `me` in one iteration, which began at `began_at` (seconds, as all times here)."""

    me: PeerId
    began_at: float
    _waiting: dict[MicrobatchId, PeerId] = field(default_factory=dict)
    _signs: dict[PeerId, _Sign] = field(default_factory=dict)

    def released(self, microbatch: MicrobatchId, first: PeerId) -> None:
        """It is on its way to this stage peer."""
        self._waiting[microbatch] = first

    def handed_on(self, microbatch: MicrobatchId, now: float) -> None:
        """Its first stage peer has handed it on, or it is back already."""
        first = self._waiting.pop(microbatch, None)
        if first is not None:
            self._signs[first] = _Sign(microbatch.index, now)

    def astray(self, microbatch: MicrobatchId) -> None:
        """Its first stage peer has not taken it, or is lost."""
        self._waiting.pop(microbatch, None)

    def due_in_s(self, plan: IterationPlan, flow: PlannedFlow, now: float) -> float:
        """How long this flow has still to wait; 0 or less: its time has come."""
        planned_at = self.began_at + flow.release_s
        first = flow.stage_peers[0]
        waiting = list(self._waiting.values()).count(first)
        if waiting > MOST_AHEAD:
            return planned_at - now
        sign = self._signs.get(first)
        if sign is None:
            lead = min((self._lead(plan, peer, other)[1] for peer, other in self._signs.items()), default=1.0)
            return min(planned_at, self.began_at + flow.release_s * lead) - now
        passed_s, lead = self._lead(plan, first, sign)
        if lead < 1.0 and not waiting:
            return sign.at - now
        return min(planned_at, sign.at + (flow.release_s - passed_s) * lead) - now

    def _lead(self, plan: IterationPlan, first: PeerId, sign: _Sign) -> tuple[float, float]:
        """How many seconds of the plan have passed at a first stage peer when it gave this sign, and the real seconds for each
        of them: 1 unless the plan is ahead."""
        elapsed_s = sign.at - self.began_at
        share = plan.share_of(self.me)
        begun_s = share[sign.index % len(share)].release_s if share else elapsed_s
        later = [f.release_s for f in plan.flows if f.stage_peers[0] == first and f.release_s > begun_s]
        passed_s = min(later, default=begun_s)
        return (passed_s, elapsed_s / passed_s) if passed_s > elapsed_s else (elapsed_s, 1.0)
