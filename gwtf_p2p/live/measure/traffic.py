"""What one peer has sent, by what it was for: the transport's message kinds under the names of `monitor/traffic`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gwtf_p2p.live.compute.all_reduce_round import KIND as AVERAGE_KIND
from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.live.state.transfer import CHUNK_KIND
from gwtf_p2p.protocol.wire.messages import Backward, Forward

PURPOSES = {
    Forward.__name__: "activations",
    Backward.__name__: "gradients",
    AVERAGE_KIND: "averages",
    CHUNK_KIND: "state",
}
"""By the kind of a payload's header; payloads of any other kind are measurements, which count as control."""


def traffic(meter: Meter, record_bytes: int) -> dict[str, Any]:
    """The fields of a peer's report: all `bytes` so far, how many of them went past p2pd, and the number and bytes of the
    transfers that arrived."""
    sent = Counter({"records": record_bytes, "control": meter.other_bytes})
    for kind, size in meter.payload_bytes.items():
        sent[PURPOSES.get(kind, "control")] += size
    arrived = {PURPOSES[kind]: count for kind, count in meter.arrived.items() if kind in PURPOSES}
    arrived_bytes = {PURPOSES[kind]: size for kind, size in meter.arrived_bytes.items() if kind in PURPOSES}
    direct = {"payloads": meter.direct_bytes}
    return {"bytes": dict(sent), "arrived": arrived, "arrived_bytes": arrived_bytes, "direct": direct}
