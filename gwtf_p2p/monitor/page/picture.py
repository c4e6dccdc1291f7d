"""What the picture of the swarm is drawn from: flows with planned and measured time, and the hops that they go over.

A hop takes the kind of its path (public, punched, relayed) from whoever has measured the link, else from how the peer that is
sent to is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from gwtf_p2p.monitor.routes import FlowLine
from gwtf_p2p.monitor.swarm_state import SHOWN
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import LinkMeasurement, StageRecord

FLOWS_SHOWN = 2000

Row = dict[str, Any]
Named = Mapping[tuple[int, str], int]
"""A peer's number by its stage and name: names alone are only the ends of ids."""


def numbers_by_name(records: Iterable[StageRecord], numbers: Mapping[PeerId, int]) -> dict[tuple[int, str], int]:
    """See `Named`."""
    return {(record.stage, record.peer[-SHOWN:]): numbers[record.peer] for record in records}


def flows_of(lines: Sequence[FlowLine], named: Named) -> list[Row]:
    """`route` are the numbers of the data peer and of the peers of stage 1, 2, ...; None for one that is gone."""
    rows = []
    for line in lines[:FLOWS_SHOWN]:
        names = line.route.split(">")
        route = [named.get((0, line.data_peer[-SHOWN:])), *(named.get((k, name)) for k, name in enumerate(names, start=1))]
        rows.append(
            {
                "id": f"{line.data_peer[-SHOWN:]}>{line.route}",
                "route": route,
                "microbatches": line.microbatches,
                "planned_s": _short(line.predicted_s),
                "measured_s": _short(line.measured_s),
            }
        )
    return rows


@dataclass
class Hops:
    """Makes the hops of a run look after look. What neither end's record has changed is kept: of thousands few change."""

    _rows: dict[tuple[int, int], tuple[StageRecord, StageRecord, int, Row]] = field(default_factory=dict)
    _carried: tuple[Sequence[Row], list[tuple[tuple[int, int], int]]] | None = None
    _links: dict[PeerId, tuple[StageRecord, dict[PeerId, LinkMeasurement]]] = field(default_factory=dict)

    def of(self, flows: Sequence[Row], records: Mapping[PeerId, StageRecord], peers: Mapping[int, PeerId]) -> list[Row]:
        """Every pair of neighbours on some flow, the way back to the data peer too. `microbatches` are those of the plan."""
        if self._carried is None or self._carried[0] is not flows:
            self._carried = flows, _carried(flows)
        before, self._rows = self._rows, {}
        for (a, b), count in self._carried[1]:
            one, other = records[peers[a]], records[peers[b]]
            kept = before.get((a, b))
            if kept is None or kept[0] is not one or kept[1] is not other or kept[2] != count:
                kept = one, other, count, self._row(a, b, count, one, other)
            self._rows[a, b] = kept
        self._links = {peer: known for peer, known in self._links.items() if peer in records}
        return [row for *_, row in self._rows.values()]

    def _row(self, a: int, b: int, count: int, one: StageRecord, other: StageRecord) -> Row:
        link = self._links_of(one).get(other.peer) or self._links_of(other).get(one.peer)
        return {
            "id": f"{a}>{b}",
            "from": a,
            "to": b,
            "microbatches": count,
            "path": (other.path if link is None else link.path).value,
            "round_trip_s": None if link is None else _short(link.round_trip_s),
            "bytes_per_s": None if link is None else _short(link.bandwidth_bytes_per_s),
            "measured_by": None if link is None else link.source.value,
        }

    def _links_of(self, record: StageRecord) -> dict[PeerId, LinkMeasurement]:
        known = self._links.get(record.peer)
        if known is None or known[0] is not record:
            known = self._links[record.peer] = record, {link.to: link for link in record.links}
        return known[1]


def _carried(flows: Sequence[Row]) -> list[tuple[tuple[int, int], int]]:
    """Microbatches of the plan by the ends of each hop."""
    carried: dict[tuple[int, int], int] = {}
    for flow in flows:
        for a, b in pairwise([*flow["route"], flow["route"][0]]):
            if a is not None and b is not None:
                carried[a, b] = carried.get((a, b), 0) + flow["microbatches"]
    return sorted(carried.items())


def _short(value: float | None) -> float | None:
    """Two digits that count."""
    return None if value is None else float(f"{value:.2g}")
