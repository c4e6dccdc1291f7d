"""Cost of a hop, in integer microseconds (GWTF, arXiv 2509.21221).

    d(i,j) = (c_i + c_j)/2 + (lambda_ij + lambda_ji)/2 + size/(beta_ij + beta_ji)

with c the compute time of one microbatch (both passes), lambda the one-way latency, beta the bandwidth in bytes/s and size
the bytes of both passes together, an activation and its gradient (the paper has twice one size; here each direction has a
codec of its own): the mean delay of a microbatch between i and j over both passes. Integers, so that peers with equal views
compute equal plans on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class HopBytes:
    """What one microbatch carries over each hop. Layers are 0 (data peers), 1..S, and the data peers again: hop k goes from
    layer k to layer k + 1. `end` is what goes to or comes from thin data peers, each way; None where it is as between others.
    """

    stages: int
    activation: float
    gradient: float
    end: float | None = None

    def forth(self, k: int) -> float:
        """An activation over hop k."""
        return self.activation if self.end is None or 0 < k < self.stages else self.end

    def back(self, k: int) -> float:
        """Its gradient, the other way."""
        return self.gradient if self.end is None or 0 < k < self.stages else self.end

    def over_line(self, stage: int) -> float:
        """Over the line of a peer of this stage, in the direction in which it is more."""
        before, after = (stage - 1) % (self.stages + 1), stage
        return max(self.forth(before) + self.back(after), self.forth(after) + self.back(before))


def hop_cost_us(
    compute_s: tuple[float, float],
    latency_s: tuple[float, float],
    bandwidth_bytes_per_s: tuple[float, float],
    microbatch_bytes: float,
    gradient_bytes: float | None = None,
) -> int:
    """Cost of one hop; each pair is (i, j) or (i to j, j to i). Raises ValueError when both bandwidths are 0.

    `gradient_bytes` None: as many as `microbatch_bytes`.
    """
    both_ways_bytes = microbatch_bytes + (microbatch_bytes if gradient_bytes is None else gradient_bytes)
    bandwidth = sum(bandwidth_bytes_per_s)
    if bandwidth <= 0:
        raise ValueError(f"bandwidth_bytes_per_s: expected a positive sum, got {bandwidth_bytes_per_s}")
    seconds = sum(compute_s) / 2 + sum(latency_s) / 2 + both_ways_bytes / bandwidth
    return round(seconds * MICROSECONDS)
