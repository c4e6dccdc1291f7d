"""Cost of a hop, in integer microseconds (GWTF, arXiv 2509.21221).

    d(i,j) = (c_i + c_j)/2 + (lambda_ij + lambda_ji)/2 + size/(beta_ij + beta_ji)

with c the compute time of one microbatch (both passes), lambda the one-way latency, beta the bandwidth in bytes/s and size
the bytes of both passes together, an activation and its gradient (the paper has twice one size; here each direction has a
codec of its own): the mean delay of a microbatch between i and j over both passes. Integers, so that peers with equal views
compute equal plans on any machine.
"""

from __future__ import annotations

MICROSECONDS = 1_000_000


def hop_cost_us(
    compute_s: tuple[float, float],
    latency_s: tuple[float, float],
    bandwidth_bytes_per_s: tuple[float, float],
    microbatch_bytes: int,
    gradient_bytes: int | None = None,
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
