"""What happened in a run, put together from the reports of its peers: loss, throughput, routes, recoveries, the ledger.

Pure: reports in, figures out. The ledger is checked here once more: the shares that a stage group averaged must add up to
every microbatch of the iteration, no more and no less. (Any member's word will do: a member makes its gradient equal its share
before it averages, and one that is killed between the commit and its own step has contributed all the same.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Report = Mapping[str, Any]


@dataclass
class RunState:
    """`expected` is the number of microbatches of one iteration over all data peers."""

    stages: int
    expected: int
    tokens_per_microbatch: int
    names: dict[str, str] = field(default_factory=dict)
    losses: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    begun_at: dict[int, float] = field(default_factory=dict)
    ended_at: dict[int, float] = field(default_factory=dict)
    routes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    recoveries: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    averaged: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    useful_s: float = 0.0
    computed_s: dict[str, float] = field(default_factory=dict)
    state_of: dict[str, str] = field(default_factory=dict)

    def hear(self, peer: str, stage: int, report: Report, now: float) -> None:
        """One report of the peer with that name; `now` is the listener's clock."""
        match report["name"]:
            case "microbatch_done":
                self.losses[_iteration(report)].append(float(report["loss"]))
                self.routes[tuple(self.names.get(p, p) for p in report["route"])] += 1
            case "iteration_begins":
                self.begun_at.setdefault(int(report["iteration"]), now)
            case "stepped":
                self._stepped(peer, stage, report, now)
            case "recovery":
                self.recoveries[str(report["kind"])] += 1
                self.events.append(f"{peer}: {report['kind']} recovery of {report['microbatch']}")
            case "recovered":
                self.recovery_s.append(float(report["seconds"]))
            case "peer_lost":
                lost = self.names.get(str(report["peer"]), str(report["peer"])[-6:])
                self.events.append(f"{peer} lost {lost}: {report['reason']}")
            case "average_failed":
                self.events.append(f"average failed: {report['reason']}")
            case _:
                pass

    @property
    def iterations(self) -> int:
        """Iterations that a data peer has committed."""
        return len(self.ended_at)

    def loss(self, iteration: int) -> float:
        """Mean over the iteration's microbatches, each counted once."""
        losses = self.losses[iteration]
        return sum(losses) / len(losses)

    def iteration_seconds(self) -> list[float]:
        """Wall seconds of each committed iteration, its average and step included."""
        return [self.ended_at[i] - self.begun_at[i] for i in sorted(self.ended_at) if i in self.begun_at]

    def tokens_per_second(self) -> float:
        seconds = sum(self.iteration_seconds())
        return self.iterations * self.expected * self.tokens_per_microbatch / seconds if seconds else 0.0

    def accounting(self) -> dict[str, int]:
        """Microbatches by fate, over all committed iterations; each stage must have counted each exactly once."""
        lost = double = 0
        for iteration in self.ended_at:
            groups = [self.averaged.get((iteration, stage), (0, 0)) for stage in range(self.stages + 1)]
            lost += max(self.expected - different for _, different in groups)
            double += max(total - different for total, different in groups)
        retried = sum(self.recoveries.values())
        return {"done": self.iterations * self.expected - lost, "retried": retried, "lost": lost, "double_counted": double}

    def _stepped(self, peer: str, stage: int, report: Report, now: float) -> None:
        iteration = int(report["iteration"])
        self.averaged[iteration, stage] = (int(report["of"]), int(report["different"]))
        self.useful_s += float(report["useful_s"])
        self.computed_s[peer] = float(report["computed_s"])
        if stage == 0:
            self.ended_at[iteration] = max(now, self.ended_at.get(iteration, 0.0))


def _iteration(report: Report) -> int:
    return int(str(report["microbatch"]).split("/")[1])
