"""How long a stage group takes to average its gradients, by a butterfly all-reduce over lines that are otherwise idle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.links import Links


def round_seconds(links: Links, participants: Sequence[PeerId], gradient_bytes: int) -> float:
    """Each of n members sends and receives 2 (n - 1) / n of the gradient, 1 / n to and from every other; the slowest pair or
    line decides. 0 for a group of one."""
    n = len(participants)
    if n < 2:
        return 0.0
    pairs = list(permutations(participants, 2))
    slowest = min(links.spec(a, b).bandwidth_bytes_per_s for a, b in pairs)
    lines = [links.line_bytes_per_s[m] for m in participants if m in links.line_bytes_per_s]
    bandwidth = min([slowest * (n - 1), *lines])
    latency = max(links.latency_s(a, b) for a, b in pairs)
    return 2 * (n - 1) / n * gradient_bytes / bandwidth + 2 * latency
