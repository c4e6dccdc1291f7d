"""The newest statement of each owner counts, as long as its owner is heard of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.alive import sign_of_life
from gwtf_p2p.protocol.exchange.stated import MOST_MARKS, short
from gwtf_p2p.protocol.exchange.table import MOST_LIFETIME_S, URGENT_AGAIN_S, RecordTable
from tests.protocol.exchange.making import NOW, SECRET, life, peer, record, statement

GIVER, OTHER = peer(90), peer(91)


def test_the_newest_of_an_owner_counts_in_whatever_order_they_come() -> None:
    table = RecordTable()
    assert table.take(statement(record(1, 2)), GIVER, NOW)
    assert not table.take(statement(record(1, 1)), GIVER, NOW)
    assert not table.take(statement(record(1, 2)), OTHER, NOW)
    assert table.records(NOW) == [record(1, 2)]


def test_a_sign_of_life_is_the_same_record_once_more() -> None:
    """As its owner has published it meanwhile in the DHT: who has lost it sees that it is there again by the number."""
    table = RecordTable()
    table.take(statement(record(1, 5), NOW + 30), GIVER, NOW)
    assert table.lives(life(1, 3, 5), GIVER, NOW)
    assert table.records(NOW + 59) == [record(1, 8)]
    assert table.records(NOW + 61) == []
    assert not table.lives(life(1, 2, 5), OTHER, NOW), "an older one says nothing new"


def test_a_sign_of_life_that_is_not_its_owners_is_an_offence_and_changes_nothing() -> None:
    table = RecordTable()
    table.take(statement(record(1)), GIVER, NOW)
    with pytest.raises(RemoteProtocolError):
        table.lives(replace(life(1, 2), sign=b"x" * 16), GIVER, NOW)
    with pytest.raises(RemoteProtocolError):
        table.take(statement(record(2)), GIVER, NOW, (2, sign_of_life(SECRET, 3)))
    assert table.records(NOW) == [record(1)]


def test_nothing_holds_longer_than_an_hour() -> None:
    table = RecordTable()
    with pytest.raises(RemoteProtocolError):
        table.take(statement(record(1), NOW + MOST_LIFETIME_S + 1), GIVER, NOW)
    table.take(statement(record(1), NOW + 30, step_s=600.0), GIVER, NOW)
    assert not table.lives(life(1, 7), GIVER, NOW)


def test_who_is_not_heard_of_any_more_is_dropped() -> None:
    table = RecordTable()
    table.take(statement(record(1), NOW + 30), GIVER, NOW)
    table.take(statement(record(2), NOW + 60), GIVER, NOW)
    assert table.drop_expired(NOW + 45)
    assert [r.peer for r in table.records(NOW + 45)] == [peer(2)]
    assert table.signed_bytes == len(statement(record(2)).signed)
    assert not table.take(statement(record(1), NOW + 30), OTHER, NOW + 45), "and is not taken up from somebody who still has it"


def test_whoever_asks_is_told_what_has_changed_since_but_for_what_it_has_told_itself() -> None:
    table = RecordTable()
    table.take(statement(record(1)), GIVER, NOW)
    table.take(statement(record(2)), OTHER, NOW)
    marks, upto = table.marks_since(0, OTHER, MOST_MARKS)
    assert [mark.owner for mark in marks] == [short(peer(1))]
    table.take(statement(record(3)), GIVER, NOW)
    table.lives(life(1, 1), GIVER, NOW)
    marks, upto = table.marks_since(upto, OTHER, MOST_MARKS)
    assert [(mark.owner, mark.index) for mark in marks] == [(short(peer(3)), 0), (short(peer(1)), 1)]
    assert table.marks_since(upto, OTHER, MOST_MARKS) == ([], upto)


def test_what_is_too_much_for_one_answer_comes_in_the_next() -> None:
    table = RecordTable()
    for number in range(7):
        table.take(statement(record(number)), GIVER, NOW)
    told, upto = [], 0
    while (answer := table.marks_since(upto, OTHER, 3))[0]:
        assert len(answer[0]) <= 3
        told, upto = [*told, *answer[0]], answer[1]
    assert [mark.owner for mark in told] == [short(peer(number)) for number in range(7)]


def test_a_flood_of_owners_leaves_those_that_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 20
    monkeypatch.setattr("gwtf_p2p.protocol.exchange.table.MOST_OWNERS", most)
    table = RecordTable()
    table.take(statement(record(1)), GIVER, NOW)
    for number in range(2, most + 10):
        table.take(statement(record(number)), OTHER, NOW)
    assert len(table) == most
    assert table.take(statement(record(1, 2)), GIVER, NOW)


def test_only_what_others_act_on_is_urgent_and_of_one_owner_only_so_often() -> None:
    table = RecordTable()
    table.take(statement(record(1, 1)), GIVER, NOW)
    table.take(statement(replace(record(1, 2), kept_bytes=5)), GIVER, NOW + 1)
    table.take(statement(record(1, 3, capacity=9)), GIVER, NOW + 2)
    table.take(statement(record(1, 4, capacity=8)), GIVER, NOW + 2 + URGENT_AGAIN_S / 2)
    assert [urgent.position for urgent in table.urgent] == [1, 3]


def test_signs_of_life_are_not_counted_as_something_that_was_stated_and_what_ends_is() -> None:
    table, times = RecordTable(), list[int]()
    for change in (
        lambda: table.take(statement(record(1, 2)), GIVER, NOW),
        lambda: table.take(statement(record(1, 1)), GIVER, NOW),
        lambda: table.lives(life(1, 1, 2), GIVER, NOW),
        lambda: table.drop_expired(NOW + 39),
        lambda: table.drop_expired(NOW + 41),
    ):
        change()
        times.append(table.stated_times)
    assert times == [1, 1, 1, 1, 2]
