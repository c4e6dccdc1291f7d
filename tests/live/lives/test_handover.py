"""What one life leaves to the next, across a fork and a SIGKILL."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from gwtf_p2p.live.lives.handover import MOST_BYTES, Handover, LoadedModules


@dataclass(frozen=True)
class Note:
    text: str


@pytest.fixture
def handover() -> Iterator[Handover]:
    with closing(Handover()) as handover:
        yield handover


def lives(handover: Handover, life: Callable[[], object]) -> None:
    """A life that is killed as soon as it has done this much."""
    child = os.fork()
    if not child:
        try:
            life()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    handover.receive()


def test_the_newest_value_of_each_type_is_left(handover: Handover) -> None:
    assert handover.left(Note) is None
    lives(handover, lambda: (handover.leave(Note("a")), handover.leave(LoadedModules(("b",))), handover.leave(Note("c"))))
    assert handover.left(Note) == Note("c") and handover.left(LoadedModules) == LoadedModules(("b",))
    lives(handover, lambda: handover.leave(Note(f"after {handover.left(Note)}")))
    assert handover.left(Note) == Note("after Note(text='c')"), "a life sees what was left before it"
    handover.forget()
    assert handover.left(Note) is None and handover.left(LoadedModules) is None


def test_files_stay_open_for_as_long_as_their_value_is_kept(handover: Handover) -> None:
    reads, writes = os.pipe()

    def life() -> None:
        handover.leave(Note("first"), [writes])

    lives(handover, life)
    os.close(writes)
    [kept] = handover.files(Note)
    os.write(kept, b"x")
    assert os.read(reads, 9) == b"x"
    lives(handover, lambda: handover.leave(Note("second")))
    assert os.read(reads, 9) == b"", "nobody has the other end any more"
    assert handover.files(Note) == ()
    os.close(reads)


@pytest.mark.parametrize("size", [MOST_BYTES // 2, MOST_BYTES, 1 << 22])
def test_what_cannot_be_left_ends_nobody(size: int, handover: Handover) -> None:
    for _ in range(64):  # nobody receives meanwhile
        handover.leave(Note("x" * size))
    handover.receive()
    assert handover.left(Note) in (None, Note("x" * size))
