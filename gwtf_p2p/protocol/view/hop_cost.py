"""Cost of a hop, in integer microseconds (GWTF, arXiv 2509.21221).

    d(i,j) = (c_i + c_j)/2 + (lambda_ij + lambda_ji)/2 + 2*size/(beta_ij + beta_ji)

with c the compute time of one microbatch (both passes), lambda the one-way latency, beta the bandwidth in bytes/s and size
the bytes of one activation: the mean delay of a microbatch between i and j over both passes. Integers, so that peers with
equal views compute equal plans on any machine.
"""

from __future__ import annotations

MICROSECONDS = 1_000_000


def hop_cost_us(
    compute_s: tuple[float, float],
    latency_s: tuple[float, float],
    bandwidth_bytes_per_s: tuple[float, float],
    microbatch_bytes: int,
) -> int:
    """Cost of one hop; each pair is (i, j) or (i to j, j to i). Raises ValueError when both bandwidths are 0."""
    bandwidth = sum(bandwidth_bytes_per_s)
    if bandwidth <= 0:
        raise ValueError(f"bandwidth_bytes_per_s: expected a positive sum, got {bandwidth_bytes_per_s}")
    seconds = sum(compute_s) / 2 + sum(latency_s) / 2 + 2 * microbatch_bytes / bandwidth
    return round(seconds * MICROSECONDS)
