"""A running swarm as an observer sees it: the records now, and what changed since it began to look.

Pure: records and a clock in, figures out. `plain` is what /api/v1/state serves, `prometheus` what /metrics does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord

EVENTS_KEPT = 200
LOSSES_KEPT = 2000
SHOWN = 6
"""Last characters of a peer id, for people."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened, `at` seconds of the observer's clock."""

    at: float
    text: str


@dataclass
class SwarmState:
    """`losses` and `iteration_s` by iteration, as data peers published them. Totals count what was seen happening."""

    run: RunRecord
    records: dict[PeerId, StageRecord] = field(default_factory=dict)
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    losses: dict[int, float] = field(default_factory=dict)
    iteration_s: dict[int, float] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    seen_at: float = 0.0

    def look(self, records: Sequence[StageRecord], now: float) -> list[Change]:
        """The records as they are now; returns what has changed. Of several records of a peer the newest counts."""
        newest: dict[PeerId, StageRecord] = {}
        for record in records:
            held = newest.get(record.peer)
            if held is None or record.sequence_number > held.sequence_number:
                newest[record.peer] = record
        texts = self._compare(newest) if self.looks else []
        self.records, self.seen_at = dict(sorted(newest.items())), now
        self.looks += 1
        self._note_progress()
        changes = [Change(now, text) for text in texts]
        self.changes.extend(changes)
        return changes

    def _compare(self, newest: Mapping[PeerId, StageRecord]) -> list[str]:
        texts = []
        for peer in sorted({*self.records, *newest}):
            before, after = self.records.get(peer), newest.get(peer)
            if before is None and after is not None:
                self.totals["came"] += 1
                texts.append(f"{_name(after)} has come, {after.state.value}")
            elif after is None and before is not None:
                self.totals["gone"] += 1
                texts.append(f"{_name(before)} is gone: its record has expired")
            elif before is not None and after is not None:
                if before.stage != after.stage:
                    self.totals["moved"] += 1
                    texts.append(f"{_name(before)} has moved to stage {after.stage}")
                if before.state is not after.state:
                    texts.append(f"{_name(after)} is {after.state.value}, was {before.state.value}")
                if before.epoch != after.epoch:
                    texts.append(f"{_name(after)} has gone back to version {after.weights_version}")
        return texts

    def _note_progress(self) -> None:
        done = [r for r in self.records.values() if r.stage == DATA_STAGE and "loss" in r.progress]
        for iteration in {r.weights_version - 1 for r in done}:
            here = [r for r in done if r.weights_version - 1 == iteration]
            self.losses[iteration] = fmean(r.progress["loss"] for r in here)
            self.iteration_s[iteration] = max(r.progress.get("iteration_s", 0.0) for r in here)
        for kept in (self.losses, self.iteration_s):
            for old in sorted(kept)[:-LOSSES_KEPT]:
                del kept[old]

    # ---- figures

    @property
    def version(self) -> int:
        """Iterations that are committed."""
        return max((r.weights_version for r in self.records.values()), default=0)

    @property
    def tokens_per_second(self) -> float:
        """By the last iteration's time; 0.0 while unmeasured."""
        seconds = self.iteration_s[max(self.iteration_s)] if self.iteration_s else 0.0
        run = self.run
        tokens = run.data_peers * run.microbatches_per_data_peer * run.microbatch_size * run.sequence_length
        return tokens / seconds if seconds else 0.0

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        run = self.run
        return {
            "run_id": run.run_id,
            "router": run.router,
            "stages": run.stages,
            "data_peers": run.data_peers,
            "iterations": self.version,
            "total_iterations": run.total_iterations,
            "loss": self.losses[max(self.losses)] if self.losses else None,
            "losses": [[i, self.losses[i]] for i in sorted(self.losses)],
            "iteration_seconds": [[i, self.iteration_s[i]] for i in sorted(self.iteration_s)],
            "tokens_per_second": round(self.tokens_per_second, 1),
            "peers": [self._peer(record) for record in self._by_stage()],
            "changes": [{"at": change.at, "text": change.text} for change in self.changes],
            "totals": dict(self.totals),
        }

    def _by_stage(self) -> list[StageRecord]:
        return sorted(self.records.values(), key=lambda r: (r.stage, r.peer))

    @staticmethod
    def _peer(record: StageRecord) -> dict[str, Any]:
        return {
            "peer": record.peer,
            "role": "data" if record.stage == DATA_STAGE else "stage",
            "stage": record.stage,
            "state": record.state.value,
            "weights_version": record.weights_version,
            "capacity": record.capacity,
            "occupancy": record.occupancy,
            "forward_s": record.forward_s,
            "backward_s": record.backward_s,
            "path": record.path.value,
            "links": len(record.links),
            "line_bytes_per_s": record.line_bytes_per_s,
            "progress": dict(record.progress),
        }

    def prometheus(self) -> str:
        """Text exposition format 0.0.4."""
        lines: list[str] = []

        def family(name: str, kind: str, told: str, values: Sequence[tuple[Mapping[str, object], float]]) -> None:
            lines.extend((f"# HELP {name} {told}", f"# TYPE {name} {kind}"))
            for labels, value in values:
                inside = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
                lines.append(f"{name}{'{' + inside + '}' if inside else ''} {value:g}")

        records = self._by_stage()
        each = [({"peer": r.peer, "stage": r.stage}, r) for r in records]
        states = Counter((r.stage, r.state) for r in records)
        family(
            "gwtf_peers",
            "gauge",
            "Peers by stage and state.",
            [({"stage": k, "state": s.value}, states[k, s]) for k in range(self.run.stages + 1) for s in PeerState],
        )
        family("gwtf_iterations_total", "counter", "Committed iterations.", [({}, self.version)])
        family(
            "gwtf_microbatches_total",
            "counter",
            "Microbatches in committed gradients, by the peer that is credited.",
            [(labels, r.progress.get("microbatches", 0.0)) for labels, r in each],
        )
        family("gwtf_peer_occupancy", "gauge", "Microbatches held.", [(labels, r.occupancy) for labels, r in each])
        family("gwtf_peer_capacity", "gauge", "Most microbatches held.", [(labels, r.capacity) for labels, r in each])
        timed = [
            ({**labels, "phase": phase}, seconds)
            for labels, r in each
            for phase, seconds in (("forward", r.forward_s), ("backward", r.backward_s))
        ]
        family("gwtf_compute_seconds", "gauge", "Median seconds of a microbatch.", timed)
        family(
            "gwtf_peer_changes_total",
            "counter",
            "Peers seen to come, go and move.",
            [({"result": what}, self.totals[what]) for what in ("came", "gone", "moved")],
        )
        if self.losses:
            family("gwtf_loss", "gauge", "Mean loss of the last iteration.", [({}, self.losses[max(self.losses)])])
            family(
                "gwtf_iteration_seconds",
                "gauge",
                "Seconds of the last iteration.",
                [({}, self.iteration_s[max(self.iteration_s)])],
            )
        return "\n".join(lines) + "\n"  # fmt: skip


def _name(record: StageRecord) -> str:
    role = "data peer" if record.stage == DATA_STAGE else f"stage peer of stage {record.stage}"
    return f"{role} {record.peer[-SHOWN:]}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
