"""What a monitor has seen is there for the next one on this disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gwtf_p2p.monitor.history.store import LATE_S, open_history
from gwtf_p2p.monitor.swarm_state import Change, Sample
from gwtf_p2p.protocol.errors import InputError

RUN = "watched"


def samples(first: int, last: int) -> list[Sample]:
    return [Sample(i, 5.0 - i / 1000, 2.0, 4.0 if i % 10 == 0 else None) for i in range(first, last)]


def test_a_fresh_monitor_finds_what_an_earlier_one_saw(tmp_path: Path) -> None:
    first = open_history(tmp_path / "h.sqlite")
    assert first.began(RUN, 50.0) == 50.0
    first.add(RUN, samples(0, 30), [Change(60.0, "somebody has come", "came", "Qm1")], 60.0)
    first.close()
    again = open_history(tmp_path / "h.sqlite")
    assert again.trouble == "" and again.began(RUN, 99.0) == 50.0
    assert again.newest_samples(RUN, 30, 3) == samples(27, 30)
    assert again.newest_changes(RUN, 9) == [Change(60.0, "somebody has come", "came", "Qm1")]
    assert again.span("another", 30) is None
    again.close()


def test_series_are_as_fine_as_is_asked_for() -> None:
    history = open_history(None)
    history.add(RUN, samples(0, 10_000), [], 1.0)
    whole = history.series(RUN, 0, 9_999, 100)
    assert len(whole) == 100 and whole[-1][0] == 9_999
    iteration, mean, lowest, highest, held_out, seconds = whole[0]
    assert (iteration, held_out, seconds) == (99, 4.0, 2.0) and lowest < mean < highest
    part = history.series(RUN, 500, 519, 100)
    assert [row[0] for row in part] == list(range(500, 520)) and part[1][4] is None
    history.close()


def test_a_run_that_begins_again_under_its_id_does_not_show_the_old_future() -> None:
    history = open_history(None)
    history.add(RUN, samples(0, 50), [], 100.0)
    history.add(RUN, [Sample(0, 9.0, 1.0), Sample(1, 8.0, 1.0)], [], 100.0 + 2 * LATE_S)
    assert history.newest_samples(RUN, 100, 100) == [Sample(0, 9.0, 1.0), Sample(1, 8.0, 1.0)]
    assert history.span(RUN, 100) == (0, 1)
    history.close()


def test_a_second_monitor_of_one_file_reads_it_and_writes_nothing(tmp_path: Path) -> None:
    first = open_history(tmp_path / "h.sqlite")
    first.add(RUN, samples(0, 3), [], 1.0)
    second = open_history(tmp_path / "h.sqlite")
    assert "another monitor" in second.trouble and second.span(RUN, 9) == (0, 2)
    second.add(RUN, samples(3, 6), [], 1.0)
    assert second.span(RUN, 9) == (0, 5) and first.span(RUN, 9) == (0, 2)
    second.close()
    first.close()


@pytest.mark.parametrize("kind", ["text", "other program", "newer"])
def test_a_file_that_is_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    if kind == "text":
        path.write_text("my notes, which nobody may overwrite\n" * 40)
    elif kind == "newer":
        open_history(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="--history"):
        open_history(path)
    assert path.read_bytes() == before


def test_a_disk_that_refuses_ends_nothing_and_is_told(tmp_path: Path) -> None:
    history = open_history(tmp_path / "h.sqlite")
    history._connection.execute("PRAGMA query_only = ON")  # as a full disk: every write fails
    history.add(RUN, samples(0, 3), [], 1.0)
    assert "not written" in history.trouble and history.span(RUN, 9) is None
    history.close()
