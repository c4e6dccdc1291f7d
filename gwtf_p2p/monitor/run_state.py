"""What happened in a run, put together from the reports of its peers: loss, throughput, routes, recoveries, the ledger.

Pure: reports in, figures out. The ledger is checked here once more: the shares that a stage group averaged must add up to
every microbatch of the iteration, no more and no less. (Any member's word will do: a member makes its gradient equal its share
before it averages, and one that is killed between the commit and its own step has contributed all the same.)

When the swarm goes back to an earlier version, the iterations after it are forgotten here too: they are done again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.monitor.recovery import RecoveryFigures
from gwtf_p2p.monitor.traffic import TrafficFigures

Report = Mapping[str, Any]


@dataclass
class RunState:
    """`expected` is the number of microbatches of one iteration over all `data_peers`; `losses` by iteration and microbatch.

    `empty` are stages that have nobody left, so that the training pauses. `note`: what holds of this run and not of others.
    """

    stages: int
    expected: int
    tokens_per_microbatch: int
    data_peers: int = 1
    note: str = ""
    names: dict[str, str] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    begun_at: dict[int, float] = field(default_factory=dict)
    ended_at: dict[int, float] = field(default_factory=dict)
    routes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    events: list[str] = field(default_factory=list)
    averaged: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    empty: set[int] = field(default_factory=set)
    recovery: RecoveryFigures = field(default_factory=RecoveryFigures)
    traffic: TrafficFigures = field(default_factory=TrafficFigures)
    joined_s: dict[str, float] = field(default_factory=dict)

    def hear(self, peer: str, stage: int, report: Report, now: float) -> None:
        """One report of the peer with that name; `now` is the listener's clock."""
        self.recovery.hear(peer, report, self.names)
        self.traffic.hear(peer, report)
        match report["name"]:
            case "started":
                self.names[str(report["peer"])] = peer
            case "microbatch_done":
                if report["loss"] is not None:
                    self.losses[_iteration(report)][str(report["microbatch"])] = float(report["loss"])
                self.routes[tuple(self.names.get(p, p) for p in report["route"])] += 1
            case "iteration_begins":
                self.begun_at.setdefault(int(report["iteration"]), now)
            case "stepped":
                self._stepped(stage, report, now)
            case "going_back":
                self._go_back(int(report["version"]))
            case _:
                pass
        line = self._event(peer, report)
        if line and line not in self.events[-1:]:
            self.events.append(line)

    @property
    def recoveries(self) -> Counter[str]:
        """By kind."""
        return self.recovery.kinds

    @property
    def iterations(self) -> int:
        """Iterations that a data peer has committed."""
        return len(self.ended_at)

    @property
    def pause(self) -> str:
        """Why the training stands still, or nothing."""
        stages = ", ".join(str(stage) for stage in sorted(self.empty))
        return f"paused: stage {stages} has no peer" if stages else ""

    def loss(self, iteration: int) -> float:
        """Mean over the iteration's microbatches, each counted once."""
        losses = self.losses[iteration].values()
        return sum(losses) / len(losses) if losses else float("nan")

    def known_losses(self) -> list[float]:
        """Of the committed iterations that have one: where all was not finite, there is none."""
        return [self.loss(iteration) for iteration in sorted(self.ended_at) if self.losses[iteration]]

    @property
    def newest(self) -> int:
        """The last iteration that has begun; -1 before the first."""
        return max(self.begun_at, default=-1)

    def iteration_seconds(self) -> list[float]:
        """Wall seconds of each committed iteration, its average and step included."""
        return [self.ended_at[i] - self.begun_at[i] for i in sorted(self.ended_at) if i in self.begun_at]

    def tokens_per_second(self) -> float:
        seconds = sum(self.iteration_seconds())
        return self.iterations * self.expected * self.tokens_per_microbatch / seconds if seconds else 0.0

    def untold(self) -> list[int]:
        """Committed iterations after the last one that every stage has told of: in one of them a run is when it is broken off,
        as data peers tell of a step before stage peers do."""
        stages = range(self.stages + 1)
        told = max((i for i in self.ended_at if all((i, stage) in self.averaged for stage in stages)), default=-1)
        return sorted(iteration for iteration in self.ended_at if iteration > told)

    def accounting(self, without: Collection[int] = ()) -> dict[str, int]:
        """Microbatches by fate, over all committed iterations, but for those that are not to count; each stage must have
        counted each exactly once.

        Those of a data peer that took no part in an iteration are no loss (`withdrawn`): they were taken back everywhere.
        """
        whole = lost = double = 0
        for iteration in self.ended_at.keys() - set(without):
            groups = [self.averaged.get((iteration, stage), (0, 0)) for stage in range(self.stages + 1)]
            of_this = self._whole(iteration)
            whole += of_this
            lost += max(of_this - different for _, different in groups)
            double += max(total - different for total, different in groups)
        return {"done": whole - lost, "retried": sum(self.recoveries.values()), "lost": lost, "double_counted": double}

    @property
    def withdrawn(self) -> int:
        """Microbatches of data peers that were away, over all committed iterations."""
        return sum(self.expected - self._whole(iteration) for iteration in self.ended_at)

    def _whole(self, iteration: int) -> int:
        """All microbatches of the data peers that took part in an iteration."""
        each = self.expected // self.data_peers
        _, different = self.averaged.get((iteration, 0), (0, 0))
        return each * max(1, -(-different // each))

    def _stepped(self, stage: int, report: Report, now: float) -> None:
        iteration = int(report["iteration"])
        self.averaged[iteration, stage] = (int(report["of"]), int(report["different"]))
        if stage == 0:
            self.ended_at[iteration] = max(now, self.ended_at.get(iteration, 0.0))

    def _go_back(self, version: int) -> None:
        later = [i for i in {*self.losses, *self.begun_at, *self.ended_at} if i >= version]
        for iteration in later:
            self.losses.pop(iteration, None)
            self.begun_at.pop(iteration, None)
            self.ended_at.pop(iteration, None)
        for key in [key for key in self.averaged if key[0] >= version]:
            del self.averaged[key]

    def _event(self, peer: str, report: Report) -> str:
        """What the list of events says of it, or nothing."""
        match report["name"]:
            case "recovery":
                return f"{peer}: {report['kind']} recovery of {report['microbatch']}"
            case "peer_lost":
                return f"{peer} lost {self._name(report['peer'])}: {report['reason']}"
            case "average_failed":
                return f"average failed: {report['reason']}"
            case "stage_empty":
                self.empty.add(int(report["stage"]))
                return self.pause
            case "stage_staffed":
                self.empty.discard(int(report["stage"]))
                return f"stage {report['stage']} has a peer again"
            case "joined":
                self.joined_s[peer] = float(report["seconds"])
                return f"{peer} joined in {report['seconds']:.1f} s"
            case "moving":
                return f"{peer} moves from stage {report['stage']} to {report['to_stage']}: {report['reason']}"
            case "going_back":
                return f"back to version {report['version']}: {report.get('reason', 'nobody has a later one')}"
            case "version_missing":
                return f"nobody has version {report['version']} of stage {report['stage']} yet"
            case "memory_full":
                return f"{peer} takes nothing more: {report['kept']} microbatches kept until the iteration closes"
            case _:
                return ""

    def _name(self, peer: object) -> str:
        return self.names.get(str(peer), str(peer)[-6:])


def _iteration(report: Report) -> int:
    return int(str(report["microbatch"]).split("/")[1])
