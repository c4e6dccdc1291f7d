"""How many microbatches of an iteration each data peer has, where they are not the same: in proportion to its pace.

The whole iteration has as many as with equal shares, so the mean gradient is over equally many; what differs is who reads
which windows. A share is bounded, so that no shard of the data, and nobody's line, is left out. Whole numbers by largest
remainder, ties to the lower shard: equal paces give equal shares everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST, MOST = 0.5, 1.5
"""Of an equal share. Simulated on home lines, a wider span gains nothing more."""

_HALVINGS = 60


def bounds_of(microbatches: int) -> tuple[int, int]:
    """The least and the most of a data peer, where an equal share is so many."""
    return max(1, -int(-LEAST * microbatches // 1)), max(1, int(MOST * microbatches))


def elastic_shares(paces: Sequence[float], microbatches: int) -> tuple[int, ...]:
    """Shares by place; their sum is `microbatches` for each. `paces` in microbatches a second, above 0."""
    least, most = bounds_of(microbatches)
    total = microbatches * len(paces)
    exact = _between(paces, total, least, most)
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(paces)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder * (total - sum(shares)):
        if sum(shares) < total and shares[place] < most:
            shares[place] += 1
    return tuple(shares)


def _between(paces: Sequence[float], total: int, least: int, most: int) -> list[float]:
    """Paces times one factor, cut off at the bounds, so that their sum is the total, or a little less."""
    low, high = 0.0, most / min(paces)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(min(most, max(least, middle * pace)) for pace in paces) <= total:
            low = middle
        else:
            high = middle
    return [min(most, max(least, low * pace)) for pace in paces]


def wrong_in(shares: Sequence[int], data_peers: int, microbatches: int) -> str:
    """What was expected of the shares that a run states; empty when they are right, or none."""
    if not shares:
        return ""
    least, most = bounds_of(microbatches)
    total = data_peers * microbatches
    if len(shares) != data_peers or sum(shares) != total or not all(least <= share <= most for share in shares):
        return f"expected {data_peers} numbers from {least} to {most} with the sum {total}, got {list(shares)}"
    return ""
