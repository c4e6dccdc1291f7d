"""The mean loss of an iteration, without what no loss of this run can be.

Each data peer reports the mean loss of its microbatches. One that is not finite, negative, or far beyond what the others report
(the upper middle one of them), is left out of the mean and told with its data peer. `FLOOR` is the loss of guessing among
270,000 tokens: what is within ten times of it may be one of a run that has just begun, on other text. A run that diverges is
not made to look well: where nobody else reports a loss that can be one, and where all grow, they are told as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median_high

from gwtf_p2p.protocol.ids import PeerId

FLOOR = 12.5
FACTOR = 10.0

Report = tuple[int, float]
"""Microbatches of a data peer, and their mean loss."""


def mean_loss(reports: Mapping[PeerId, Report]) -> tuple[float, dict[PeerId, str]]:
    """Over all microbatches of those that are believed, 0 of none; and why the others are not."""
    counted = {peer: report for peer, report in sorted(reports.items()) if report[0] > 0}
    possible = {peer: loss for peer, (_, loss) in counted.items() if math.isfinite(loss) and loss >= 0}
    refused: dict[PeerId, str] = {}
    for peer, (_, loss) in counted.items():
        most = FACTOR * max(FLOOR, median_high([other for of, other in possible.items() if of != peer] or [loss]))
        if peer not in possible:
            refused[peer] = f"{loss:.6g} is no loss"
        elif loss > most:
            refused[peer] = f"a loss of {loss:.6g}, expected at most {most:.6g}"
    believed = [report for peer, report in counted.items() if peer not in refused]
    total = sum(count for count, _ in believed)
    return sum(count * loss for count, loss in believed) / max(1, total), refused
