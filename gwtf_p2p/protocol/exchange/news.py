"""What of a record is news: others act on it at once."""

from __future__ import annotations

from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.wire.records import StageRecord


def news_of(record: StageRecord) -> tuple[object, ...]:
    """What of a record others route, plan or join by, and therefore act on at once."""
    version = record.weights_version if record.stage == DATA_STAGE else 0  # who has missed a commit learns it from a data peer
    place = record.stage, record.state, record.capacity, record.epoch, version, record.memory_limit_bytes, record.completion
    way = record.path, record.maddrs, record.circuit_bytes, record.circuit_s
    lost = tuple(sorted(record.lost.items()))
    return *place, *way, lost, record.flows_iteration, record.flows, record.cost_to_sink_us, record.takeover_us
