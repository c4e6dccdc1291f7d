"""How long a stage group takes to average its gradients, over lines that are otherwise idle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from gwtf_p2p.protocol.averages.rows import rows_of
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.links import Links


def round_seconds(links: Links, participants: Sequence[PeerId], gradient_bytes: float, all_with_all: int = 0) -> float:
    """All with all, each of n members sends and receives 2 (n - 1) / n of the gradient, 1 / n to and from every other; the
    slowest pair or line decides. In rows (`protocol/averages/rows`) the slowest row decides, and then the slowest lane. 0 for
    a group of one."""
    rows = rows_of(participants, all_with_all)
    if rows is None:
        return _seconds(links, participants, gradient_bytes, len(participants))
    in_rows = max(_seconds(links, row, gradient_bytes, rows.lanes) for row in rows.rows)
    columns = [rows.column(lane) for lane in range(rows.lanes)]
    return in_rows + max(round_seconds(links, column, gradient_bytes / rows.lanes, all_with_all) for column in columns)


def _seconds(links: Links, members: Sequence[PeerId], gradient_bytes: float, owners: int) -> float:
    """Among members of which so many sum up a share."""
    n = len(members)
    if n < 2:
        return 0.0
    pairs = list(permutations(members, 2))
    slowest = min(links.spec(a, b).bandwidth_bytes_per_s for a, b in pairs)
    lines = [links.line_bytes_per_s[m] for m in members if m in links.line_bytes_per_s]
    bandwidth = min([slowest * (n - 1), *lines])
    return (n + owners - 2) / owners * gradient_bytes / bandwidth + slowest_exchange_s(links, members)


def slowest_exchange_s(links: Links, members: Sequence[PeerId]) -> float:
    """Latencies of a part, and of its average back, between the two members that are furthest apart."""
    return 2 * max(links.latency_s(a, b) for a, b in permutations(members, 2))


def part_bytes(members: int, gradient_bytes: int) -> int:
    """What each of them sends to every other, all with all: its own part of the other's share, and the average of its share."""
    return -(-2 * gradient_bytes // members)
