"""A run as /api/v1 serves it: one JSON document of plain values, described by `static/schema.json`.

Public monitors leave out every address of a peer. Names are the last characters of peer ids; `n` is a number that this monitor
has given to a peer, by which flows and hops refer to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gwtf_p2p.monitor.health import findings
from gwtf_p2p.monitor.ledger import called
from gwtf_p2p.monitor.page.join_line import JoinLine
from gwtf_p2p.monitor.page.picture import Hops, flows_of, numbers_by_name
from gwtf_p2p.monitor.routes import FlowLine, RoutePlans
from gwtf_p2p.monitor.swarm_state import SHOWN, SwarmState
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.records import RunRecord, StageRecord

SCHEMA = 1
PEERS_SHOWN = 2000
"""More are counted, but not listed: a page cannot show them, and whoever makes up peers must not fill its readers' memory."""

CHANGES_SHOWN = 60
DEPARTED_S = 90.0
"""How long the picture shows where a peer was."""

Row = dict[str, Any]


@dataclass
class Numbers:
    """Short numbers for peers, for as long as the monitor runs, and the hops between them."""

    by_peer: dict[PeerId, int] = field(default_factory=dict)
    hops: Hops = field(default_factory=Hops)
    _rows: dict[PeerId, tuple[StageRecord, int, bool, Row]] = field(default_factory=dict)
    _flows: tuple[Sequence[FlowLine], int, list[Row]] | None = None

    def of(self, peer: PeerId) -> int:
        return self.by_peer.setdefault(peer, len(self.by_peer))

    def rows(self, state: SwarmState, records: Sequence[StageRecord]) -> list[Row]:
        """A row for each peer; the same object as before where nothing has changed: of thousands few change in one look."""
        before, self._rows = self._rows, {}
        for record in records:
            peer = record.peer
            version, silent = state.version, peer in state.silent
            kept = before.get(peer)
            if kept is None or kept[0] is not record or kept[1] != version or kept[2] is not silent:
                kept = record, version, silent, _row(state, record, self.of(peer))
            self._rows[peer] = kept
        return [row for *_, row in self._rows.values()]

    def flows(self, lines: Sequence[FlowLine], shown: Sequence[StageRecord], population: int) -> list[Row]:
        """A row for each flow; the same list as before while the plan and the peers are the same."""
        if self._flows is None or self._flows[0] is not lines or self._flows[1] != population:
            self._flows = lines, population, flows_of(lines, numbers_by_name(shown, self.by_peer))
        return self._flows[2]


def document(state: SwarmState, plans: RoutePlans, numbers: Numbers, join: JoinLine, first_seen: float) -> dict[str, Any]:
    """All of a run but the history of its iterations and what only one peer's details tell."""
    shown = state.by_stage()[:PEERS_SHOWN]
    peers = numbers.rows(state, shown)
    flows = numbers.flows(plans.lines, shown, state.population)
    return {
        **_figures(state),
        "first_seen": round(first_seen, 1),
        "findings": [{"level": f.level.value, "code": f.code, "text": f.text} for f in findings(state, state.seen_at)],
        "peers": peers,
        "flows": flows,
        "flows_reason": plans.reason,
        "hops": numbers.hops.of(flows, state.records, {n: peer for peer, n in numbers.by_peer.items()}),
        "departed": [
            {"peer": d.peer, "name": d.peer[-SHOWN:], "stage": d.stage, "at": d.at}
            for d in state.departed
            if state.seen_at - d.at < DEPARTED_S
        ],
        "changes": [
            {"at": round(c.at, 1), "text": c.text, "kind": c.kind, "peer": c.peer} for c in list(state.changes)[-CHANGES_SHOWN:]
        ],
        "totals": {what: state.totals[what] for what in ("came", "gone", "moved", "silent")},
        "join": {"line": join.of(state.run.run_id), "note": join.note},
    }


def peer_details(state: SwarmState, peer: PeerId, public: bool) -> dict[str, Any] | None:
    """All that the record of one peer tells; None when there is none. Without addresses for a public monitor."""
    record = state.records.get(peer)
    if record is None:
        return None
    account = record.account
    details: dict[str, Any] = {
        "peer": peer,
        "wire_version": record.wire_version,
        "record_number": record.sequence_number,
        "weights_version": record.weights_version,
        "forward_s": record.forward_s or None,
        "backward_s": record.backward_s or None,
        "line_bytes_per_s": record.line_bytes_per_s or None,
        "kept_bytes": record.kept_bytes,
        "memory_limit_bytes": record.memory_limit_bytes or None,
        "shard": record.shard if record.stage == DATA_STAGE else None,
        "checkpoints_copied": list(record.copied),
        "computed_s": account.computed_s if account else None,
        "useful_s": account.useful_s if account else None,
        "recoveries": dict(account.recoveries) if account else {},
        "resent_bytes": account.resent_bytes if account else None,
        "microbatches": record.progress.get("microbatches"),
        "links": [
            {
                "to": called(link.to, state.records.get(link.to)),
                "round_trip_s": link.round_trip_s,
                "bytes_per_s": link.bandwidth_bytes_per_s,
                "path": link.path.value,
                "source": link.source.value,
            }
            for link in record.links
        ],
        "last_words": [{"at": c.at, "text": c.text} for c in state.changes if c.peer == peer][-8:],
    }
    if not public:
        details["addresses"] = list(record.maddrs)
    return details


def model_in_words(run: RunRecord) -> str:
    """What is trained, from the model's configuration: its kind, layers, width and vocabulary."""
    config: Mapping[str, Any] = run.model_config
    kind = str(config.get("model_type") or "a model")[:40]
    layers = run.layer_split[-1][1] if run.layer_split else 0
    width = config.get("hidden_size") or config.get("n_embd")
    words = [kind, f"{layers} layers in {run.stages} stages"]
    if isinstance(width, int):
        words.append(f"width {width}")
    if isinstance(config.get("vocab_size"), int):
        words.append(f"vocabulary of {config['vocab_size']}")
    return ", ".join(words)


def _row(state: SwarmState, record: StageRecord, number: int) -> Row:
    rate = state.microbatches_per_s(record.peer)
    return {
        "n": number,
        "peer": record.peer,
        "name": called(record.peer, record),
        "role": "data" if record.stage == DATA_STAGE else "stage",
        "stage": record.stage,
        "state": record.state.value,
        "is_silent": record.peer in state.silent,
        "path": record.path.value,
        "occupancy": record.occupancy,
        "capacity": record.capacity,
        "behind": max(0, state.version - record.weights_version),
        "microbatches_per_s": None if rate is None else _rounded(rate),
    }


def _figures(state: SwarmState) -> dict[str, Any]:
    """What one value says."""
    run = state.run
    return {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "router": run.router,
        "model": model_in_words(run),
        "data": f"{run.dataset}, tokenizer {run.tokenizer}",
        "stages": run.stages,
        "data_peers": run.data_peers,
        "peers_per_stage": run.peers_per_stage,
        "tokens_per_iteration": state.tokens_per_iteration,
        "total_iterations": run.total_iterations,
        "iterations": state.version,
        "loss": _newest(state.losses),
        "held_out_loss": _newest(state.held_out),
        "tokens_per_second": _rounded(state.tokens_per_second),
        "iteration_s": _rounded(state.pace_s) or None,
        "seconds_left": None if state.seconds_left is None else round(state.seconds_left),
        "seen_at": round(state.seen_at, 1),
        "peers_seen": len(state.records),
        "peers_online": sum(state.online().values()),
        "records_refused": state.refused,
    }


def _newest(by_iteration: Mapping[int, float]) -> float | None:
    return round(by_iteration[max(by_iteration)], 6) if by_iteration else None


def _rounded(value: float) -> float:
    """Two digits that count: what changes less is no news to whoever looks."""
    return float(f"{value:.2g}") if abs(value) < 100 else float(round(value))
