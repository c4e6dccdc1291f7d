"""When a supervised peer that has crashed is started again: at once if it is rare, seldom if it never ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.cli.process.restarts import CREDIT_S, MOST_CREDIT, MOST_DEBT, MOST_PAUSE_S, SOON_S, Pause, RestartPace
from gwtf_p2p.cli.process.supervisor import told

HOUR_S = 3600.0


def lives_in(seconds: float, each_s: float) -> int:
    """How many lives begin in so long, if each ends after `each_s`."""
    pace, now, lives = RestartPace(), 0.0, 0
    while now < seconds:
        lives += 1
        now += each_s + pace.crashed(each_s).seconds
    return lives


@pytest.mark.parametrize("each_s", [0.1, SOON_S - 0.1, SOON_S, 15.0, 30.0])
def test_who_crashes_for_ever_does_so_once_a_minute_at_most(each_s: float) -> None:
    settling, calm = lives_in(HOUR_S, each_s), lives_in(2 * HOUR_S, each_s)
    assert calm - settling <= HOUR_S / (MOST_PAUSE_S / 2 + each_s) + 1
    assert settling <= HOUR_S / (MOST_PAUSE_S / 2 + each_s) + MOST_CREDIT + 2 * MOST_DEBT


def test_a_crash_now_and_then_is_no_reason_to_wait() -> None:
    pace = RestartPace()
    assert all(not pace.crashed(CREDIT_S).seconds for _ in range(100))
    assert [pace.crashed(SOON_S).seconds for _ in range(3)] == [0.0] * 3, "nor are a few at a time"


def test_who_crashes_soon_begins_again_at_once_one_time_and_then_waits_longer_and_longer() -> None:
    pace = RestartPace()
    pauses = [pace.crashed(0.0) for _ in range(6)]
    assert pauses[0] == Pause(0.0, 1, 0.0)
    seconds = [pause.seconds for pause in pauses[1:]]
    assert seconds[0] > 0 and seconds == sorted(seconds) and seconds[-1] <= MOST_PAUSE_S
    assert [pause.crashes for pause in pauses] == [1, 2, 3, 4, 5, 6]


@given(st.lists(st.floats(0.0, 100.0), max_size=50))
def test_after_a_long_sound_life_everything_is_as_at_first(lives: list[float]) -> None:
    pace = RestartPace()
    for lived_s in lives:
        pace.crashed(lived_s)
    assert pace.crashed((MOST_CREDIT + MOST_DEBT) * CREDIT_S) == Pause(0.0, 1, (MOST_CREDIT + MOST_DEBT) * CREDIT_S)


def test_what_is_told_is_one_line_that_says_why_it_waits() -> None:
    assert told("signal 9: Killed", Pause(0.0, 1, 3.0)) == "it has ended (signal 9: Killed); it is started again now"
    waits = "it has ended (exit code 1), crash 7 in 1 min 15 s of work: it is started again in 4.0 s"
    assert told("exit code 1", Pause(4.0, 7, 75.0)) == waits
