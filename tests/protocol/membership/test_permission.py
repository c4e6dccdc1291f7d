"""May a peer work now? What its owner has said, at every minute of the day, and with every quota."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.membership.permission import (
    IDLE_AFTER_S,
    MINUTES_OF_A_DAY,
    IdleWatch,
    Moment,
    Usage,
    Verdict,
    Wishes,
    left_bytes,
    quiet_range,
    verdict,
)

MINUTES = st.integers(0, MINUTES_OF_A_DAY - 1)
GB = 1_000_000_000


def at(minute: int, day: str = "2026-01-31") -> Moment:
    return Moment(minute, day, day[:7])


@given(MINUTES, MINUTES, MINUTES)
def test_a_range_and_the_rest_of_the_day_are_each_others_opposite(begin: int, end: int, minute: int) -> None:
    """Over midnight, too."""
    if begin != end:
        assert (quiet_range(((begin, end),), minute) is None) != (quiet_range(((end, begin),), minute) is None)
        assert quiet_range(((begin, end),), begin) is not None and quiet_range(((begin, end),), end) is None


@pytest.mark.parametrize(
    ("minute", "text"),
    [(21 * 60 + 59, ""), (22 * 60, "07:00"), (0, "07:00"), (7 * 60 - 1, "07:00"), (7 * 60, ""), (12 * 60, "13:30"), (810, "")],
)
def test_quiet_hours_say_until_when(minute: int, text: str) -> None:
    found = verdict(Wishes(quiet=((1320, 420), (720, 810))), at(minute), Usage(), False, "")
    assert found == (Verdict("quiet", f"quiet hours, until {text}") if text else Verdict())


@given(st.lists(st.tuples(st.integers(0, 3 * GB), st.integers(1, 28)), max_size=30), st.integers(1, 9 * GB))
def test_a_quota_is_used_up_by_what_has_passed_in_its_day_and_in_no_other(sizes: list[tuple[int, int]], quota: int) -> None:
    usage, days = Usage(), sorted(day for _, day in sizes)
    for (size, _), day in zip(sizes, days, strict=True):
        usage = usage.more(size, at(0, f"2026-02-{day:02}"))
    for day in {*days, 28}:
        if day >= max(days, default=0):
            passed = sum(size for (size, _), of in zip(sizes, days, strict=True) if of == day)
            found = verdict(Wishes(day_bytes=quota), at(0, f"2026-02-{day:02}"), usage, False, "")
            assert found.may_work == (passed < quota)
    whole = sum(size for size, _ in sizes)
    assert verdict(Wishes(month_bytes=quota), at(0, "2026-02-28"), usage, False, "").may_work == (whole < quota)
    assert verdict(Wishes(quota and (), quota, quota), at(0, "2026-03-01"), usage, False, "").may_work


def test_what_is_left_of_quotas_is_left_of_the_narrower_one() -> None:
    used = Usage().more(3 * GB, at(0, "2026-02-01")).more(2 * GB, at(0, "2026-02-02"))
    for wishes, left in ((Wishes(), inf), (Wishes(day_bytes=9 * GB), 7 * GB), (Wishes(month_bytes=6 * GB), GB)):
        assert left_bytes(wishes, at(0, "2026-02-02"), used) == left
    both = Wishes(day_bytes=4 * GB, month_bytes=4 * GB)
    assert left_bytes(both, at(0, "2026-02-02"), used) == 0
    assert left_bytes(both, at(0, "2026-03-02"), used) == 4 * GB


def test_the_reason_that_a_person_gave_last_or_that_lasts_longest_is_told() -> None:
    wishes = Wishes(((0, 60),), 2 * GB, 3 * GB, only_when_idle=True)
    used = Usage("2026-01-31", 3 * GB, "2026-01", 3 * GB)
    codes = [verdict(wishes, at(0), used, True, "busy").code, verdict(wishes, at(0), used, False, "busy").code]
    wishes, used = Wishes(wishes.quiet, 2 * GB, 0, True), Usage("2026-01-31", 3 * GB, "2026-01", 3 * GB)
    codes += [verdict(wishes, at(0), used, False, "busy").code, verdict(wishes, at(0, "2026-02-01"), used, False, "busy").code]
    codes += [verdict(wishes, at(60, "2026-02-01"), used, False, why).code for why in ("busy", "")]
    assert codes == ["hand", "quota_month", "quota_day", "quiet", "in_use", ""]
    assert "2 GB is used up, until midnight" in verdict(wishes, at(0), used, False, "").text


def test_a_machine_is_idle_when_nobody_has_used_it_for_a_while() -> None:
    watch = IdleWatch()
    assert watch.look(1000.0, None, False, 0.1) == ""
    assert "terminal" in watch.look(1010.0, 20.0, False, 0.0), "typed 20 s ago"
    assert watch.look(990.0 + IDLE_AFTER_S - 1, 299.0, False, 0.0)
    assert watch.look(990.0 + IDLE_AFTER_S, IDLE_AFTER_S, False, 0.0) == ""
    assert "desktop" in watch.look(2000.0, None, True, 0.0)
    assert "80%" in watch.look(2010.0, None, False, 0.8)
    assert "80%" in watch.look(2010.0 + IDLE_AFTER_S - 1, None, False, 0.0), "what has ended just now may come again"
    assert watch.look(2010.0 + IDLE_AFTER_S, None, False, 0.0) == ""
