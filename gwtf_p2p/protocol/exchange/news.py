"""What of a record is news, which others act on at once; and when a record is stored in the DHT as well."""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.exchange.pace import LOOK_S, RECORD_PERIOD_S
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.wire.records import StageRecord

SLACK_S = 0.5
"""What is due so soon is stored with what is published now."""


def news_of(record: StageRecord) -> tuple[object, ...]:
    """What of a record others route, plan or join by, and therefore act on at once."""
    version = record.weights_version if record.stage == DATA_STAGE else 0  # who has missed a commit learns it from a data peer
    plan = record.flows_iteration, record.flows, record.cost_to_sink_us, record.takeover_us
    return *_standing(record), version, *plan


def lasting(record: StageRecord) -> StageRecord:
    """Without what passes by itself: nobody acts on how old a measurement of a link is."""
    return replace(record, links=tuple(replace(link, age_s=0.0) for link in record.links))


def store_wait_s(record: StageRecord, stored: StageRecord | None, since_s: float, *, exchanges: bool) -> float:
    """How long the DHT may wait for a record, `since_s` seconds after it was given another one; 0.0: it is stored now.

    None: it has none. Unless everybody `exchanges` records, all are stored as they are published. Else the DHT is for those who
    come, who watch, and who have lost the others: what a peer is and how it is reached is stored at once, other news as often
    as anybody reads the DHT, the rest once a period, and what has not changed at all every second one, before it expires.
    """
    if stored is None or not exchanges or _standing(record) != _standing(stored):
        return 0.0
    if news_of(record) != news_of(stored):
        rest_s = LOOK_S
    else:
        has_changed = lasting(replace(record, sequence_number=stored.sequence_number)) != lasting(stored)
        rest_s = RECORD_PERIOD_S if has_changed else 2 * RECORD_PERIOD_S
    wait_s = rest_s - since_s
    return wait_s if wait_s > SLACK_S else 0.0


def _standing(record: StageRecord) -> tuple[object, ...]:
    """What the peer is, and how it is reached."""
    place = record.stage, record.state, record.capacity, record.epoch, record.memory_limit_bytes, record.completion
    way = record.path, record.maddrs, record.circuit_bytes, record.circuit_s
    return *place, *way, tuple(sorted(record.lost.items()))
