"""A peer states what has changed, and says of the rest that it still holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gwtf_p2p.protocol.exchange.own import OwnStatements
from gwtf_p2p.protocol.exchange.pace import RECORD_PERIOD_S, period_s
from gwtf_p2p.protocol.exchange.stated import MOST_STATED_BYTES, Mark, Stated
from gwtf_p2p.protocol.exchange.table import RecordTable
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, StageRecord, decode_stage
from tests.protocol.exchange.making import NOW, SECRET, peer, record, statement


def link(number: int, age_s: float = 1.0) -> LinkMeasurement:
    return LinkMeasurement(peer(number), 0.01, 1e6, LinkSource.TRAFFIC, 3, age_s)


def own() -> OwnStatements:
    return OwnStatements(lambda: SECRET)


CHANGES: list[Callable[[StageRecord], StageRecord]] = [
    lambda r: replace(r, capacity=9),
    lambda r: replace(r, links=(link(2), link(3))),
    lambda r: replace(r, kept_bytes=7),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_stated_and_what_has_not_is_said_to_hold(change: Callable[[StageRecord], StageRecord]) -> None:
    statements, before = own(), replace(record(1, 5), links=(link(2),))
    assert isinstance(statements.next(before, 3, NOW), Stated)
    later = NOW + RECORD_PERIOD_S
    assert isinstance(statements.next(replace(before, sequence_number=6), 3, later), Mark)
    changed = statements.next(replace(change(before), sequence_number=7), 3, later + 1)
    assert isinstance(changed, Stated) and decode_stage(changed.record) == replace(change(before), sequence_number=7)


def test_a_measurement_that_has_only_grown_older_is_no_change() -> None:
    statements, before = own(), replace(record(1, 5), links=(link(2, 1.0),))
    statements.next(before, 3, NOW)
    older = replace(before, sequence_number=6, links=(link(2, 11.0),))
    assert isinstance(statements.next(older, 3, NOW + RECORD_PERIOD_S), Mark)


def test_signs_of_life_keep_a_statement_for_an_hour_and_then_it_is_made_anew() -> None:
    statements, table = own(), RecordTable()
    told: list[str] = []
    for number in range(500):
        now = NOW + number * RECORD_PERIOD_S
        of = record(1, 1 + number)
        said = statements.next(of, 3, now)
        if isinstance(said, Stated):
            table.take(replace(statement(of), stated=said), peer(1), now)
        elif said is not None:
            table.lives(said, peer(1), now)
        told.append(type(said).__name__)
        assert table.records(now + 2 * RECORD_PERIOD_S) == [of], "it is always the one that was published last"
    assert told.count("Stated") == 3


def test_large_swarms_hear_less_often_of_each_and_believe_it_longer() -> None:
    statements, table, peers = own(), RecordTable(), 1000
    first = statements.next(record(1, 1), peers, NOW)
    assert isinstance(first, Stated)
    table.take(replace(statement(record(1, 1)), stated=first), peer(1), NOW)
    signs = 0
    for number in range(1, 60):
        now = NOW + number * RECORD_PERIOD_S
        said = statements.next(record(1, 1 + number), peers, now)
        if isinstance(said, Mark):
            signs += 1
            table.lives(said, peer(1), now)
        assert table.records(now + period_s(peers))
    assert signs == 59 * RECORD_PERIOD_S // period_s(peers)


def test_links_that_do_not_fit_are_left_out_the_last_first() -> None:
    many = replace(record(1), links=tuple(link(number) for number in range(44)))
    told = own().next(many, 3, NOW)
    assert isinstance(told, Stated) and len(told.record) <= MOST_STATED_BYTES
    links = decode_stage(told.record).links
    assert links and links == many.links[: len(links)]
    with pytest.raises(ValueError, match="over the bound"):
        own().next(replace(record(1), flows=tuple(str(number) * 100 for number in range(100))), 3, NOW)
