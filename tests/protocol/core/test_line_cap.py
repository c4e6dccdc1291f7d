"""A capped line carries no more than its cap, and small messages do not wait for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.core.line_cap import Line, LineCap

STEPS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100_000)), min_size=1, max_size=40)


@given(st.floats(1e3, 1e7), STEPS)
def test_in_any_stretch_of_time_no_more_passes_than_the_cap_and_one_burst(rate: float, steps: list[tuple[float, int]]) -> None:
    cap, now = LineCap(rate), 0.0
    passed: list[tuple[float, int]] = []
    for pause, size in steps:
        now += pause
        wait_s = cap.wait_s(size, now)
        passed.append((now + wait_s, size))
    assert passed == sorted(passed, key=lambda each: each[0]), "in the order in which they came"
    for first, (begin, _) in enumerate(passed):
        for end, _ in passed[first:]:
            within = sum(size for at, size in passed[first:] if at <= end)
            assert within <= rate * (end - begin) + cap.burst_bytes + passed[first][1] + 1e-6 * within
    assert cap.total_bytes == sum(size for _, size in passed)


def test_small_messages_pass_at_once_and_payloads_wait_for_them() -> None:
    cap = LineCap(1e6)
    assert cap.wait_s(500_000, 10.0) == pytest.approx(0.4)
    cap.pass_by(100_000, 10.0)
    assert cap.wait_s(100_000, 10.0) == pytest.approx(0.6)


def test_without_a_cap_bytes_are_counted_and_nothing_waits() -> None:
    line = Line()
    assert line.up.wait_s(10**12, 0.0) == 0.0
    line.down.pass_by(7, 0.0)
    assert (line.total_bytes, line.bytes_per_s) == (10**12 + 7, 0.0)
    assert Line(5.0, 3.0).bytes_per_s == 3.0 == Line(0.0, 3.0).bytes_per_s
