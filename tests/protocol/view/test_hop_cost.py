"""The paper's cost of a hop, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.view.hop_cost import hop_cost_us

seconds = st.floats(0, 100)
bandwidth = st.floats(1, 1e10)


def test_cost_is_mean_compute_plus_mean_latency_plus_transfer_at_mean_bandwidth() -> None:
    # (0.2 + 0.4) / 2 + (0.01 + 0.03) / 2 + 2 * 4e6 / (1e6 + 3e6) = 0.3 + 0.02 + 2.0 s
    assert hop_cost_us((0.2, 0.4), (0.01, 0.03), (1e6, 3e6), 4_000_000) == 2_320_000


def test_one_direction_without_bandwidth_counts_half() -> None:
    assert hop_cost_us((0, 0), (0, 0), (1e6, 0), 500_000) == 1_000_000


def test_no_bandwidth_at_all_is_our_mistake_and_named() -> None:
    with pytest.raises(ValueError, match="bandwidth_bytes_per_s"):
        hop_cost_us((0, 0), (0, 0), (0, 0), 1)


@given(seconds, seconds, seconds, seconds, bandwidth, bandwidth, st.integers(0, 10**9))
def test_cost_is_the_same_in_both_directions(a: float, b: float, c: float, d: float, e: float, f: float, size: int) -> None:
    assert hop_cost_us((a, b), (c, d), (e, f), size) == hop_cost_us((b, a), (d, c), (f, e), size)


def test_each_direction_has_its_own_bytes() -> None:
    both = hop_cost_us((0.2, 0.4), (0.01, 0.03), (1e6, 3e6), 3_000_000, 1_000_000)
    assert both == hop_cost_us((0.2, 0.4), (0.01, 0.03), (1e6, 3e6), 2_000_000)
