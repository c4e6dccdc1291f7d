"""What a run measures: iteration times, work done and wasted, recoveries. It listens; it never asks a machine to do anything.

An iteration lasts from the step before it (the first: from the first data peer's begin) until the last data peer has
stepped. Compute is counted in device seconds, work cut off by a crash included; *useful* is what entered a committed
gradient, so that repeated, dropped and interrupted computations are all waste. Means leave the warm-up iterations out, in
which the peers have no measurements yet; counts cover the whole run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Share

RECOVERY_KINDS = ("forward", "backward", "aggregation")


@dataclass
class Metrics:
    """`expected`: microbatches of one iteration, all data peers together. `stages` is S.

    Of a router that negotiates: the `flows` that each data peer holds, and when they were first as many as they ever were.
    """

    expected: int
    stages: int
    ends: list[float] = field(default_factory=list)
    began_at: float | None = None
    useful_s: float = 0.0
    recoveries: Counter[str] = field(default_factory=Counter)
    reports: Counter[str] = field(default_factory=Counter)
    flows: dict[PeerId, int] = field(default_factory=dict)
    most_flows: int = 0
    full_flow_s: float = 0.0
    _committed: dict[tuple[int, Stage], list[tuple[Share, ...]]] = field(default_factory=dict)

    def stepping(self, participant: Participant, stage: Stage, iteration: int, now: float) -> None:
        """A peer is about to step: the shares that its group has averaged count now, once for the group.

        Should two members step with different shares, both count: what is in both is then counted twice.
        """
        preparing = participant.preparing
        if preparing is not None and preparing.iteration == iteration:
            committed = self._committed.setdefault((iteration, stage), [])
            if not any(shares is preparing.shares or shares == preparing.shares for shares in committed):
                committed.append(preparing.shares)
        if stage == DATA_STAGE:
            if iteration == len(self.ends):
                self.ends.append(now)
            self.ends[iteration] = now

    def report(self, peer: PeerId, report: ef.Report, now: float) -> None:
        self.reports[report.name] += 1
        fields = report.fields
        if report.name == "iteration_begins" and self.began_at is None:
            self.began_at = now
        elif report.name == "going_back" and "epoch" in fields:
            version = fields["version"]
            assert isinstance(version, int)  # what was committed since is done again, and counts no more
            self._committed = {key: shares for key, shares in self._committed.items() if key[0] < version}
        elif report.name == "recovery":
            self.recoveries[str(fields["kind"])] += 1
        elif report.name == "stepped":
            useful = fields["useful_s"]
            assert isinstance(useful, float | int)
            self.useful_s += useful
        elif report.name == "flows":
            self._flows_are(peer, fields["count"], now)

    def _flows_are(self, peer: PeerId, count: object, now: float) -> None:
        assert isinstance(count, int)
        self.flows[peer] = count
        together = sum(self.flows.values())
        if together > self.most_flows:
            self.most_flows, self.full_flow_s = together, now

    @property
    def iteration_seconds(self) -> list[float]:
        starts = [self.began_at or 0.0, *self.ends]
        return [end - start for start, end in zip(starts, self.ends, strict=False)]

    def lost(self) -> int:
        """Microbatches of committed iterations that are missing in the gradient of at least one stage."""
        wanted = self.expected * len(self.ends)
        stages = [Stage(k) for k in range(self.stages + 1)]
        whole = sum(
            len(set.intersection(*(set(self._count(iteration, stage)) for stage in stages)))
            for iteration in range(len(self.ends))
        )
        return wanted - whole

    def double_counted(self) -> int:
        return sum(n - 1 for iteration, stage in self._committed for n in self._count(iteration, stage).values())

    def _count(self, iteration: int, stage: Stage) -> Counter[MicrobatchId]:
        """How often each microbatch is in the committed gradient of a stage."""
        committed = self._committed.get((iteration, stage), ())
        return Counter(m for shares in committed for share in shares for m in share.microbatches)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `to_json` is the line that `gwtf sim --json` prints and some more fields."""

    scenario: str
    router: str
    recovery: str
    seed: int
    warmup_iterations: int
    microbatches_per_iteration: int
    iteration_seconds: tuple[float, ...]
    microbatches_lost: int
    double_counted: int
    wasted_compute_fraction: float
    recoveries: Mapping[str, int]
    bound_microbatches_per_second: float
    bound_iteration_seconds: float
    trace_sha256: str
    extra: Mapping[str, float | str]

    @property
    def measured_seconds(self) -> tuple[float, ...]:
        """Iterations after the warm-up."""
        return self.iteration_seconds[self.warmup_iterations :]

    @property
    def mean_iteration_s(self) -> float:
        return sum(self.measured_seconds) / len(self.measured_seconds)

    @property
    def microbatches_per_second(self) -> float:
        return self.microbatches_per_iteration / self.mean_iteration_s

    def to_json(self) -> dict[str, object]:
        return {
            "scenario": self.scenario,
            "router": self.router,
            "recovery": self.recovery,
            "seed": self.seed,
            "iterations": len(self.iteration_seconds),
            "warmup_iterations": self.warmup_iterations,
            "iteration_seconds": list(self.iteration_seconds),
            "mean_iteration_seconds": self.mean_iteration_s,
            "microbatches_done": self.microbatches_per_iteration * len(self.iteration_seconds) - self.microbatches_lost,
            "microbatches_lost": self.microbatches_lost,
            "double_counted": self.double_counted,
            "wasted_compute_fraction": self.wasted_compute_fraction,
            "microbatches_per_second": self.microbatches_per_second,
            "bound_microbatches_per_second": self.bound_microbatches_per_second,
            "bound_iteration_seconds": self.bound_iteration_seconds,
            "recoveries": {kind: self.recoveries.get(kind, 0) for kind in RECOVERY_KINDS},
            **self.extra,
            "trace_sha256": self.trace_sha256,
        }
