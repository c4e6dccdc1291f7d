"""What one peer has to say of itself, put together from its reports: what it does, why it waits, what it has contributed.

Pure: reports and a clock (seconds since the epoch) in, figures out. A peer that starts again (p2pd died, or another stage needs
it more) goes on counting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.stall.rules import counted, duration

Report = Mapping[str, Any]

IDLE_S = 10.0
"""A peer that has computed nothing for so long is told to wait."""

EVENTS_KEPT = 100
PACE_ITERATIONS = 20

AFTER = {
    "": "reading flags",
    "flags": "loading torch and transformers",
    "loaded": "starting p2pd and joining the network",
    "p2pd": "finding out how this machine can be reached",
    "reachability": "joining the DHT",
    "dht": "checking the clock and reading the run's record",
    "run": "making this peer's part of the model",
    "weights": "looking for checkpoints of this stage",
    "checkpoint": "measuring how fast this machine computes",
    "measured": "asking to be let in, with the newest weights",
}
"""What a peer is at while it starts, by the step that it has done last. In this order."""


@dataclass
class OwnPeer:
    """`role`: what people call it. `done_in` by iteration: microbatches of this peer that are in its committed average, and
    those of its whole stage. What a rollback has undone is not among them, as in the run's ledger."""

    began: float
    role: str = "peer"
    peer: str = ""
    maddr: str = ""
    run: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    done: str = ""
    online_since: float = 0.0
    download: tuple[int, int] | None = None
    waiting_for: str = ""
    is_leaving: bool = False
    stall: str = ""
    paused: str = ""
    ended_early: str = ""
    iteration: int = -1
    done_in: dict[int, tuple[int, int]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    stepped_at: deque[float] = field(default_factory=lambda: deque(maxlen=PACE_ITERATIONS + 1))
    recoveries: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    worked_at: float = 0.0
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    _computed_before_s: float = 0.0
    _computed_s: float = 0.0

    def hear(self, report: Report, now: float) -> None:
        """One report."""
        match report["name"]:
            case "step":
                self.done = str(report["done"])
            case "started":
                self.peer, self.maddr = str(report["peer"]), str(report["maddrs"][0]) if report["maddrs"] else ""
                self.waiting_for = ""
            case "waiting":
                self.waiting_for = "; ".join(f"{maddr}: {why}" for maddr, why in report["reasons"])
            case "run":
                self.run = dict(report)
            case "online":
                self.online_since, self.download, self.is_leaving = now, None, False
                self.where = f"stage {report['stage']}" if report["stage"] else f"shard {report['shard']} of the data"
            case "catching_up" | "restarting" | "moving":
                self.online_since, self.download = 0.0, None
            case "draining":
                self.is_leaving = True
            case "paused" | "resumed":
                self.online_since, self.download, self.is_leaving, self.done = 0.0, None, False, "run"
                self.paused = str(report["text"]) if report["name"] == "paused" else ""
            case "download":
                self.download = int(report["chunks"]), int(report["of"])
            case "stepped":
                self._stepped(report, now)
            case "recovery":
                self.recoveries += 1
            case "run_complete":
                self.ended_early = str(report.get("early", ""))
            case "figures":
                self._figures(report, now)
            case _:
                pass

    def tell(self, text: str, now: float) -> None:
        """Something that the list of events shows."""
        self.events.append((now, text))

    def _stepped(self, report: Report, now: float) -> None:
        iteration = int(report["iteration"])
        if iteration <= self.iteration:  # the swarm went back: what came after it is undone
            self.done_in = {i: done for i, done in self.done_in.items() if i < iteration}
        self.iteration = iteration
        self.done_in[iteration] = int(report["microbatches"]), int(report["of"])
        if report["loss"] is not None:
            self.losses.append(float(report["loss"]))
        self.stepped_at.append(now)
        self._count_computed(float(report["computed_s"]), now)

    def _figures(self, report: Report, now: float) -> None:
        self.figures = dict(report)
        self.stall = str(report.get("stall", ""))
        self._count_computed(float(report["computed_s"]), now)

    def _count_computed(self, seconds: float, now: float) -> None:
        if seconds < self._computed_s:  # another life of the machine counts from nothing
            self._computed_before_s, self._computed_s = self._computed_before_s + self._computed_s, 0.0
        if seconds > self._computed_s:
            self._computed_s, self.worked_at = seconds, now

    # ---- what it comes to

    @property
    def iterations(self) -> int:
        """Committed ones that it took part in."""
        return len(self.done_in)

    @property
    def committed(self) -> int:
        """Microbatches of this peer in committed averages."""
        return sum(own for own, _ in self.done_in.values())

    @property
    def of(self) -> int:
        """Microbatches of its stage in those averages."""
        return sum(of for _, of in self.done_in.values())

    @property
    def computed_s(self) -> float:
        """Seconds of computing, in all lives of this process."""
        return self._computed_before_s + self._computed_s

    @property
    def pace_s(self) -> float | None:
        """Median seconds from one committed iteration to the next; None before two."""
        gaps = [b - a for a, b in zip(self.stepped_at, list(self.stepped_at)[1:], strict=False)]
        return median(gaps) if gaps else None

    @property
    def seconds_left(self) -> float | None:
        """Until the run's end, at the pace of the last iterations."""
        total, pace = int(self.run.get("total_iterations", 0)), self.pace_s
        return max(0, total - self.iteration - 1) * pace if total and pace is not None else None

    @property
    def sent_bytes(self) -> int:
        """Everything that went out."""
        return int(sum(dict(self.figures.get("bytes", {})).values()))

    @property
    def copies(self) -> str:
        """What copies of a stage are to each other, where that is not the same."""
        every = int(self.run.get("replica_sync", 0))
        if not every:
            return ""
        since = ReplicaSync(every, int(self.run.get("total_iterations", 0))).since_whole(self.iteration + 1)
        if not since:
            return f"Copies of its stage are equal now, and averaged every {every} iterations."
        return f"Copies of its stage differ: averaged {since} of {every} iterations ago."

    def doing(self, now: float) -> tuple[str, bool]:
        """What the peer is at, in one sentence, and whether that is good news."""
        if self.is_leaving:
            return "Leaves: what is held is finished first.", True
        if self.paused:
            return f"Paused: {self.paused}.", True
        if self.waiting_for:
            return f"Waits: no initial peer answers ({self.waiting_for}).", False
        if self.download is not None and not self.online_since:
            chunks, of = self.download
            return f"Downloads the weights of {self.where or 'its stage'}: {chunks} of {of} parts.", True
        if not self.online_since:
            return f"Starts: {AFTER.get(self.done, 'catching up with the others')}.", True
        if self.ended_early:
            return f"The run has ended: {self.ended_early}; thank you. Ctrl+C leaves.", True
        total = int(self.run.get("total_iterations", 0))
        if total and self.iteration + 1 >= total:
            return f"All {total} iterations are done; thank you. Ctrl+C leaves.", True
        if self.stall:
            return self.stall, False
        idle_s = now - max(self.worked_at, self.online_since)
        if idle_s < IDLE_S:
            return "Computes.", True
        why = (
            "others are faster, or the iteration is being averaged" if self.iterations else "the run has not begun, or is full"
        )
        return f"Waits for microbatches: none for {duration(idle_s)} ({why}).", True

    def contribution(self) -> str:
        """What this peer has given so far."""
        share = f", {self.committed / self.of:.0%} of its stage's" if self.of else ""
        parts = [
            f"computed {duration(self.computed_s)}",
            f"{counted(self.committed, 'microbatch')} committed{share}",
            f"took part in {counted(self.iterations, 'iteration')}",
        ]
        if self.sent_bytes:
            parts.append(f"sent {megabytes(self.sent_bytes)}")
        return " · ".join(parts)

    def last_words(self) -> str:
        """The last line of a peer that leaves."""
        if not self.iterations and not self.computed_s:
            return "this peer leaves; it has computed nothing for the run."
        were = "was" if self.committed == 1 else "were"
        return (
            f"you computed {duration(self.computed_s)}; {counted(self.committed, 'microbatch')} of yours {were} committed "
            f"in {counted(self.iterations, 'iteration')}. Thank you."
        )


def megabytes(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
