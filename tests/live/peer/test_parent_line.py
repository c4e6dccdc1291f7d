"""A peer of the local swarm and its parent: a parent that does not read ends nobody."""

from __future__ import annotations

import multiprocessing as mp
import threading

import pytest

from gwtf_p2p.live.peer.process import ParentLine
from gwtf_p2p.live.peer.reporting import REST_S, next_pause_s

DEADLINE_S = 20.0
MANY = 2000
"""Reports of a kilobyte, which are more than a pipe holds."""


def test_a_parent_that_does_not_read_holds_nothing_up_and_gets_every_report_later() -> None:
    ours, theirs = mp.Pipe()
    stopped = threading.Event()
    line = ParentLine(theirs, stopped.set)
    for number in range(MANY):
        line.tell({"number": number, "text": "x" * 1000})
    assert not stopped.is_set()
    assert [ours.recv()["number"] for _ in range(MANY)] == list(range(MANY))
    line.close(DEADLINE_S)
    assert not stopped.is_set()
    ours.close()
    assert stopped.wait(DEADLINE_S), "a parent that is gone ends its peers"
    theirs.close()


@pytest.mark.parametrize("word", ["stop", None])
def test_any_word_of_the_parent_stops(word: str | None) -> None:
    ours, theirs = mp.Pipe()
    stopped = threading.Event()
    line = ParentLine(theirs, stopped.set)
    ours.send(word)
    assert stopped.wait(DEADLINE_S)
    line.close(DEADLINE_S)
    ours.close()
    theirs.close()


def test_what_is_told_last_arrives_before_the_end() -> None:
    ours, theirs = mp.Pipe()
    line = ParentLine(theirs, lambda: None)
    line.tell({"name": "failed"})
    line.close(DEADLINE_S)
    theirs.close()
    assert ours.recv() == {"name": "failed"}
    ours.close()


def test_what_is_told_before_a_crash_arrives() -> None:
    ours, theirs = mp.Pipe()
    line = ParentLine(theirs, lambda: None)
    for number in range(3):
        line.tell({"number": number})
    line.flush(DEADLINE_S)
    assert [ours.recv()["number"] for _ in range(3) if ours.poll()] == [0, 1, 2], "nothing is left to the writer"
    line.close(DEADLINE_S)
    theirs.close()
    ours.close()


def test_a_peer_that_computes_nothing_tells_its_figures_more_and_more_rarely_and_at_once_often_when_it_does() -> None:
    pauses = [0.2]
    for _ in range(8):
        pauses.append(next_pause_s(0.2, pauses[-1], has_computed=False))
    assert pauses[:3] == [0.2, 0.4, 0.8] and pauses[-1] == REST_S
    assert next_pause_s(0.2, pauses[-1], has_computed=True) == 0.2
    assert next_pause_s(10.0, 10.0, has_computed=False) == 10.0, "never more often than asked"
