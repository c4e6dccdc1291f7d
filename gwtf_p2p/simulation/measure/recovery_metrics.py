"""What crashes cost in a run: how long a microbatch waited, what was computed for nothing with the crash, what was sent again.

The *delay* of a recovery runs from the moment of the fault to the moment at which the microbatch has moved on: the next peer
has it. A *hop* is what it takes a microbatch to get one stage further (transfer, queue and forward) as the peers measure it.
What a stage peer has computed since its last step dies with it: that part of the waste no recovery can avoid. With a crash
probability of p per stage peer and iteration, at any moment of it, that is about p / 2 of all compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from gwtf_p2p.protocol.effects import Report
from gwtf_p2p.protocol.ids import PeerId


@dataclass
class RecoveryMetrics:
    """Listens to faults and to what machines report."""

    died_with_crashes_s: float = 0.0
    delays_s: list[float] = field(default_factory=list)
    _fault_at: dict[PeerId, float] = field(default_factory=dict)
    _hops_s: dict[PeerId, float] = field(default_factory=dict)
    _lost: dict[tuple[PeerId, str], PeerId] = field(default_factory=dict)

    def fault(self, peer: PeerId, uncommitted_s: float, now: float) -> None:
        """A peer was killed, or frozen (which takes nothing with it yet)."""
        self._fault_at[peer] = now
        self.died_with_crashes_s += uncommitted_s

    def report(self, peer: PeerId, report: Report, now: float) -> None:
        fields = report.fields
        if report.name == "recovery":
            self._lost[peer, str(fields["microbatch"])] = PeerId(str(fields["lost"]))
        elif report.name == "recovered":
            fault_at = self._fault_at.get(self._lost.pop((peer, str(fields["microbatch"])), PeerId("")))
            if fault_at is not None:
                self.delays_s.append(now - fault_at)
        elif report.name == "stepped" and isinstance(fields.get("hop_s"), float):
            self._hops_s[peer] = float(str(fields["hop_s"]))

    def figures(self, device_s: float) -> Mapping[str, float]:
        """For the JSON line; delays are 0 when nothing had to be recovered."""
        return {
            "wasted_with_crashes_fraction": self.died_with_crashes_s / device_s if device_s else 0.0,
            "recovery_count": len(self.delays_s),
            "recovery_delay_seconds": median(self.delays_s) if self.delays_s else 0.0,
            "recovery_delay_seconds_max": max(self.delays_s, default=0.0),
            "hop_seconds": median(self._hops_s.values()) if self._hops_s else 0.0,
        }
