"""Who has contributed what to a run, for people: the data peers' sums with the names that peers call themselves by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.contributions import OTHERS
from gwtf_p2p.protocol.view.contributions_told import Told
from gwtf_p2p.protocol.wire.records import RunRecord, StageRecord

SHOWN = 6
"""Last characters of a peer id, for people."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One peer. `stages` are those that it has done something of, 0 for a data peer's part; `tokens` went through it in
    committed microbatches, `seconds` it has computed for them by its own published medians. `share` is of all microbatches of
    all stages."""

    peer: PeerId
    name: str
    stages: tuple[int, ...]
    microbatches: int
    tokens: int
    seconds: float
    audits: int
    share: float
    is_here: bool


def tokens_per_microbatch(run: RunRecord) -> int:
    """All of a run's microbatches have the same number."""
    return run.microbatch_size * run.sequence_length


def public_name(record: StageRecord) -> str:
    """What a peer's user wants it to be called: without what would end a line or draw over others' text."""
    return " ".join("".join(c if c.isprintable() else " " for c in record.public_name).split())


def called(peer: PeerId, record: StageRecord | None) -> str:
    """A peer as tables call it: its own name for itself, else the end of its id."""
    if peer == OTHERS:
        return "all others"
    return (public_name(record) if record is not None else "") or peer[-SHOWN:]


def entries(told: Told, run: RunRecord, records: Mapping[PeerId, StageRecord]) -> list[Entry]:
    """All peers, most microbatches first."""
    stages: dict[PeerId, set[int]] = {}
    for stage, peer in told.contributions.of:
        stages.setdefault(peer, set()).add(int(stage))
    by_peer, tokens = told.contributions.by_peer, tokens_per_microbatch(run)
    total = sum(contribution.microbatches for contribution in by_peer.values())
    return [
        Entry(
            peer=peer,
            name=called(peer, records.get(peer)),
            stages=tuple(sorted(stages[peer])),
            microbatches=done.microbatches,
            tokens=done.microbatches * tokens,
            seconds=done.busy_ms / 1000,
            audits=done.audits,
            share=done.microbatches / total if total else 0.0,
            is_here=peer in records,
        )
        for peer, done in by_peer.items()
    ]


def plain(told: Told, run: RunRecord, records: Mapping[PeerId, StageRecord]) -> dict[str, Any]:
    """As `gwtf ledger --json` prints it."""
    rows = entries(told, run, records)
    return {
        "run_id": run.run_id,
        "version": told.version,
        "epoch": told.epoch,
        "data_peers": told.data_peers,
        "agree": told.agree,
        "complete": told.complete,
        "tokens_per_microbatch": tokens_per_microbatch(run),
        "rebuilt": [{"stage": stage, "version": version} for stage, version in told.contributions.rebuilt],
        "peers": [
            {
                "peer": e.peer,
                "name": e.name,
                "stages": list(e.stages),
                "microbatches": e.microbatches,
                "tokens": e.tokens,
                "seconds": round(e.seconds, 3),
                "audits": e.audits,
                "is_here": e.is_here,
            }
            for e in rows
        ],
    }
