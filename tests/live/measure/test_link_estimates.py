"""What a peer says of its links and its line, from transfers whose figures are given."""

from __future__ import annotations

import pytest

from gwtf_p2p.live.measure.link_estimates import LEAST_BYTES, LEAST_ROUND_TRIP_S, LONG_S, STEADY, LinkProbes
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.idle_links import BANDWIDTH_AGAIN_S, FIRST_BYTES
from gwtf_p2p.protocol.wire.records import LinkSource

A, B = PeerId("a"), PeerId("b")
MEGABYTE = 1_000_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(probes: LinkProbes, peer: PeerId = A) -> float:
    return next(link.bandwidth_bytes_per_s for link in probes.measurements() if link.to == peer)


def test_a_link_is_told_as_it_is_when_transfers_do_not_share_the_line() -> None:
    probes = LinkProbes(Clock())
    for seconds in (1.0, 2.0, 2.0, 2.0, 1.0):
        probes.observe(A, 0.1, MEGABYTE, seconds)
    assert told(probes) == MEGABYTE


def test_one_odd_sample_among_many_is_not_believed() -> None:
    probes = LinkProbes(Clock())
    for seconds in (1.0,) * 11 + (0.01,) + (1.0,) * 4:
        probes.observe(A, 0.1, MEGABYTE, seconds)
    assert told(probes) == MEGABYTE


def test_noise_is_not_told_and_a_slower_link_is() -> None:
    probes = LinkProbes(Clock())
    probes.observe(A, 0.1, MEGABYTE, 1.0)
    probes.observe(A, 0.1, MEGABYTE, 1.0 / (1 + STEADY / 2))
    assert told(probes) == MEGABYTE
    for _ in range(20):
        probes.observe(A, 0.1, MEGABYTE, 4.0)
    assert told(probes) == MEGABYTE / 4


def test_a_round_trip_that_differs_by_less_than_a_busy_processor_makes_of_it_is_told_as_before() -> None:
    probes = LinkProbes(Clock())
    probes.observe(A, 0.001, FIRST_BYTES, 0.01, probe=True)
    assert probes.round_trip_s(A) == 0.001 and probes.round_trip_s(B) == 0.0
    probes.observe(A, 0.001 + 0.9 * LEAST_ROUND_TRIP_S, 256, 0.001, probe=True)
    probes.observe(A, 0.001 + 0.9 * LEAST_ROUND_TRIP_S, FIRST_BYTES, 0.001, probe=True)
    assert probes.round_trip_s(A) == 0.001
    probes.observe(A, 0.001 + 1.1 * LEAST_ROUND_TRIP_S, 256, 0.001, probe=True)
    assert probes.round_trip_s(A) == 0.001 + 1.1 * LEAST_ROUND_TRIP_S


def test_a_probe_is_one_sample_when_there_is_traffic() -> None:
    probes = LinkProbes(Clock())
    probes.observe(A, 0.1, 64 << 10, 0.1, probe=True)
    assert probes.measurements()[0].source is LinkSource.PROBE
    probes.observe(A, 0.1, MEGABYTE, 1.0)
    (link,) = probes.measurements()
    assert (link.source, link.samples) == (LinkSource.TRAFFIC, 2)
    for _ in range(20):
        probes.observe(A, 0.1, MEGABYTE, 1.0)
    assert told(probes) == MEGABYTE


def test_the_line_carries_what_all_transfers_carry_together() -> None:
    clock = Clock()
    probes = LinkProbes(clock)
    clock.now = 10.0
    probes.observe(A, 0.1, MEGABYTE, 1.0)
    clock.now = 10.5
    probes.observe(B, 0.1, MEGABYTE, 1.0)
    assert probes.line_bytes_per_s == pytest.approx(1.5 * MEGABYTE)
    clock.now = 20.0
    probes.observe(A, 0.1, MEGABYTE, 1.0)
    assert probes.line_bytes_per_s == pytest.approx(1.5 * MEGABYTE)


def test_small_transfers_that_took_long_say_what_a_link_and_the_line_carry_at_least() -> None:
    clock = Clock()
    probes = LinkProbes(clock)
    for peer in (A, B):
        probes.observe(peer, 0.1, 64 << 10, 1.0, probe=True)
    small = LEAST_BYTES // 2
    probes.observe(A, 0.1, small, LONG_S / 2)
    probes.observe(A, 0.1, small, 10.0)
    assert told(probes) == 64 << 10, "one is too short to say anything, one may have waited"
    clock.now = 1.0
    for peer in (A, B):
        probes.observe(peer, 0.1, small, 0.1)
    assert told(probes) == told(probes, B) == pytest.approx(10 * small)
    assert probes.line_bytes_per_s == pytest.approx(20 * small)


def test_a_line_probe_counts_until_the_next_one() -> None:
    clock = Clock()
    probes = LinkProbes(clock)
    probes.carried_together(4 * MEGABYTE, 1.0)
    for _ in range(20):
        clock.now += 1.0
        probes.observe(A, 0.1, MEGABYTE, 1.0)
    probes.carried_together(MEGABYTE, 1.0)
    assert probes.line_bytes_per_s == 4 * MEGABYTE, "one that was put off in part"
    clock.now += BANDWIDTH_AGAIN_S
    probes.carried_together(2 * MEGABYTE, 1.0)
    assert probes.line_bytes_per_s == 2 * MEGABYTE


def test_what_a_capped_line_has_saved_up_in_a_pause_is_not_told_as_its_bandwidth() -> None:
    """Planners share out what is told: a burst is not what the line carries."""
    probes = LinkProbes(Clock(), Line(upload_bytes_per_s=1e6, download_bytes_per_s=4e5))
    assert probes.line_bytes_per_s == 4e5, "what its owner allows is known before anything is measured"
    probes.observe(PeerId("b"), 0.01, 1_000_000, 0.1)
    assert [link.bandwidth_bytes_per_s for link in probes.measurements()] == [1e6]
    assert probes.line_bytes_per_s == 4e5
