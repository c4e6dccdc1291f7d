"""What a live run measures from its peers' reports; the same definitions as `simulation/measure/metrics`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.monitor.run_state import RunState

RECOVERY_KINDS = ("forward", "backward", "aggregation")


@dataclass
class LiveMetrics:
    """`state` checks the ledger. Times are of the listener's clock; an iteration lasts from the step before it until the last
    data peer has stepped, the first from the first data peer's begin."""

    state: RunState
    began_at: float | None = None
    ends: dict[int, float] = field(default_factory=dict)
    useful_s: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    recoveries: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    losses: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    names: dict[str, str] = field(default_factory=dict)

    def hear(self, peer: str, stage: int, report: Mapping[str, Any], now: float) -> None:
        """One report of the peer with that name."""
        self.state.hear(peer, stage, report, now)
        match report["name"]:
            case "started":
                self.names[report["peer"]] = peer
            case "iteration_begins" if self.began_at is None:
                self.began_at = now
            case "stepped":
                self.useful_s += float(report["useful_s"])
                if stage == 0:
                    self.ends[int(report["iteration"])] = now
            case "recovery":
                self.recoveries[str(report["kind"])] += 1
            case "recovered":
                self.recovery_s.append(float(report["seconds"]))
            case "microbatch_done":
                microbatch = str(report["microbatch"])
                if report["loss"] is not None:
                    self.losses[int(microbatch.split("/")[1])][microbatch] = float(report["loss"])
                self.routes[" > ".join(self.names.get(p, p) for p in report["route"])] += 1
            case _:
                pass

    @property
    def iterations_done(self) -> int:
        return len(self.ends)

    def iteration_s(self) -> tuple[float, ...]:
        ends = [self.ends[i] for i in sorted(self.ends)]
        starts = [self.began_at or 0.0, *ends]
        return tuple(end - start for start, end in zip(starts, ends, strict=False))

    def mean_losses(self) -> tuple[float, ...]:
        """Mean over each committed iteration's microbatches, each counted once, in the order of their ids."""
        found = []
        for iteration in sorted(self.ends):
            losses = self.losses[iteration]
            found.append(sum(losses[m] for m in sorted(losses)) / len(losses) if losses else float("nan"))
        return tuple(found)
