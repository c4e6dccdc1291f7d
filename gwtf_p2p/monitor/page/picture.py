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
Ends = tuple[int, int]
"""Numbers of the peers from and to which a hop goes."""

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
    """Makes the hops of a run look after look. Only those of which an end's record has changed are made again: of thousands
    few change."""

    _rows: dict[Ends, Row] = field(default_factory=dict)
    _carried: tuple[Sequence[Row], dict[Ends, int]] | None = None
    _at: dict[PeerId, list[Ends]] = field(default_factory=dict)
    _seen: dict[PeerId, StageRecord] = field(default_factory=dict)
    _links: dict[PeerId, tuple[StageRecord, dict[PeerId, LinkMeasurement]]] = field(default_factory=dict)

    def of(self, flows: Sequence[Row], records: Mapping[PeerId, StageRecord], peers: Mapping[int, PeerId]) -> list[Row]:
        """Every pair of neighbours on some flow, the way back to the data peer too. `microbatches` are those of the plan."""
        if self._carried is None or self._carried[0] is not flows:
            self._carried = flows, _carried(flows)
            self._rows = {ends: {} for ends in self._carried[1]}
            self._at, self._seen = {}, {}
            for a, b in self._carried[1]:
                self._at.setdefault(peers[a], []).append((a, b))
                self._at.setdefault(peers[b], []).append((a, b))
            self._links = {peer: known for peer, known in self._links.items() if peer in records}
        due: dict[Ends, None] = {}
        for peer, ends in self._at.items():
            record = records[peer]
            if self._seen.get(peer) is not record:
                self._seen[peer] = record
                due.update(dict.fromkeys(ends))
        for a, b in due:
            self._rows[a, b] = self._row(a, b, self._carried[1][a, b], records[peers[a]], records[peers[b]])
        return list(self._rows.values())

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


def _carried(flows: Sequence[Row]) -> dict[Ends, int]:
    """Microbatches of the plan by the ends of each hop, in order."""
    carried: dict[Ends, int] = {}
    for flow in flows:
        for a, b in pairwise([*flow["route"], flow["route"][0]]):
            if a is not None and b is not None:
                carried[a, b] = carried.get((a, b), 0) + flow["microbatches"]
    return dict(sorted(carried.items()))


def _short(value: float | None) -> float | None:
    """Two digits that count."""
    return None if value is None else float(f"{value:.2g}")
