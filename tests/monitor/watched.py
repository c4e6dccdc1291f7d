"""A run and its records as observers find them, for the tests of the monitor."""

from __future__ import annotations

import dataclasses
from typing import Any

from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.contribution_record import ContributionRecord, SumLine
from gwtf_p2p.protocol.wire.records import Account, LinkMeasurement, LinkSource, PeerState, RunRecord, StageRecord, Timing

RUN = RunRecord(
    RunId("watched"), {"hidden_size": 64, "model_type": "llama"}, ((0, 1), (1, 2)), 0, 16, 2, 4, total_iterations=100
)
DATA, A1, A2, B1 = (PeerId(name) for name in ("Qmdata00", "QmpeerA1", "QmpeerA2", "QmpeerB1"))


def record(peer: PeerId, stage: int, **fields: Any) -> StageRecord:
    """One peer of the run, with everything measured."""
    links = tuple(LinkMeasurement(to, 0.01, 1e7, LinkSource.PROBE, 3, 0.0) for to in (DATA, A1, A2, B1) if to != peer)
    timing = Timing(0.01, 3, 0.0)
    known = StageRecord(
        peer, RUN.run_id, Stage(stage), PeerState.ONLINE, 4, forward=timing, backward=timing, finish=timing, links=links
    )
    return dataclasses.replace(known, **fields)


def swarm(version: int = 3, **data: Any) -> list[StageRecord]:
    """A data peer, two peers of stage 1 and one of stage 2; `data` are fields of the data peer's record."""
    progress = {"loss": 4.0 - version / 10, "iteration_s": 2.0, "microbatches": 4.0 * version}
    first = record(DATA, 0, **{"weights_version": version, "progress": progress, "sequence_number": version, **data})
    account = Account(computed_s=2.0 * version, useful_s=1.5 * version)
    done = {"progress": {"microbatches": 2.0 * version}, "account": account, "sequence_number": version}
    return [first, *(record(peer, stage, weights_version=version, **done) for peer, stage in ((A1, 1), (A2, 1), (B1, 2)))]


def ledger(version: int = 3) -> list[ContributionRecord]:
    """What the data peer tells of contributions after so many iterations of four microbatches."""
    lines = [
        SumLine(stage, peer, n * version, 20 * n * version, audits)
        for stage, peer, n, audits in ((Stage(0), DATA, 4, 0), (Stage(2), B1, 4, 0), (Stage(1), A1, 3, 2), (Stage(1), A2, 1, 0))
    ]
    return [ContributionRecord(DATA, RUN.run_id, 0, version, tuple(lines))]


def planned(*peers: PeerId) -> tuple[str, ...]:
    """What a data peer publishes whose microbatches go over these peers of stage 1 and B1."""
    return tuple(f"{n}:{tag(peer)}{tag(B1)}" for n, peer in enumerate(peers))
