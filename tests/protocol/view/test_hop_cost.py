"""The paper's cost of a hop, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.flow.problem import problem_of_view
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.hop_cost import HopBytes, hop_cost_us
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S, NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

D, A, B = (PeerId(name) for name in "dab")

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


def test_between_thin_data_peers_and_stages_ids_cross_alone() -> None:
    hops = HopBytes(3, 100, 90, 2)
    assert [hops.forth(k) for k in range(4)] == [2, 100, 100, 2]
    assert [hops.back(k) for k in range(4)] == [2, 90, 90, 2]
    # In the first stage an activation goes out and a gradient comes in, each with ids the other way.
    assert [hops.over_line(stage) for stage in range(4)] == [4, 102, 190, 102]
    full = HopBytes(3, 100, 90)
    assert [full.over_line(stage) for stage in range(4)] == [190] * 4


def test_a_view_prices_the_hops_of_thin_data_peers_by_what_they_carry() -> None:
    thick, thin = (NetworkView.of(records(), 2, 10_000_000, None, None, end) for end in (None, 1_000))
    assert thin.hop_cost_us(A, B) == thick.hop_cost_us(A, B)
    for one, other in ((D, A), (B, D)):
        apart = thick.hop_cost_us(one, other) - thin.hop_cost_us(one, other)
        assert apart == round(2 * (10_000_000 - 1_000) / (2 * ASSUMED_BANDWIDTH_BYTES_PER_S) * 1e6)
    problem = problem_of_view(thin)
    assert [int(cost[0, 0]) for cost in problem.costs_us] == [thin.hop_cost_us(*hop) for hop in ((D, A), (A, B), (B, D))]


def records() -> list[StageRecord]:
    at = {D: 0, A: 1, B: 2}
    return [
        StageRecord(peer=peer, run_id=RunId("run"), stage=Stage(stage), state=PeerState.ONLINE, capacity=2)
        for peer, stage in at.items()
    ]
