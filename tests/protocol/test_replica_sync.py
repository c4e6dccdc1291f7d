"""When copies of a stage are averaged, and which versions are whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from tests.exploring import examples

EVERY, TOTAL = st.integers(2, 50), st.integers(0, 200)


@examples(100)
@given(EVERY, TOTAL, st.integers(0, 199))
def test_an_iteration_is_local_or_ends_with_an_average_after_which_the_version_is_whole(every: int, total: int, i: int) -> None:
    sync = ReplicaSync(every, total)
    assert sync.is_local(i) != sync.averages_copies(i) == sync.is_whole(i + 1)
    assert 0 <= sync.since_whole(i) < every and (sync.since_whole(i) == 0) == sync.is_whole(i)


@examples(50)
@given(EVERY, st.integers(1, 200))
def test_the_last_iteration_averages(every: int, total: int) -> None:
    assert ReplicaSync(every, total).averages_copies(total - 1)


def test_without_it_every_version_is_whole_and_nothing_else_is_averaged() -> None:
    sync = ReplicaSync()
    assert not sync.is_on and all(sync.is_whole(i) and not sync.averages_copies(i) and not sync.is_local(i) for i in range(9))


def test_averages_of_copies_are_timed_apart_from_those_of_a_number() -> None:
    life = RunLife(replica_sync=3)
    keys = [life.average_key("average", iteration) for iteration in range(4)]
    assert keys == [("average",), ("average",), ("average", "copies"), ("average",)]
    assert {RunLife().average_key("average", iteration) for iteration in range(4)} == {("average",)}
