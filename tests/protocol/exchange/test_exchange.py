"""Records get to everybody by exchanging them, though some lie, withhold, or are not there any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from experiments.idle_traffic.world import ExchangeWorld, Member
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.exchange import ASK, FETCH, Exchange, Header
from gwtf_p2p.protocol.exchange.pace import RECORD_PERIOD_S
from gwtf_p2p.protocol.exchange.stated import MARK_BYTES, MOST_MARKS, OWNER_BYTES, pack_marks, short
from gwtf_p2p.protocol.exchange.table import Statement
from gwtf_p2p.protocol.exchange.wanted import MOST_FETCHED, MOST_OF_ONE
from tests.protocol.exchange.making import NOW, life, peer, record, statement

DATA_PEERS, PEERS = 2, 14
FEW_S, LIFETIME_S = 3.0, 3 * RECORD_PERIOD_S


@pytest.fixture
def world() -> ExchangeWorld:
    """Everybody has been there for a while."""
    world = ExchangeWorld(seed=0)
    records = [record(number, stage=0 if number < DATA_PEERS else 1 + number % 3) for number in range(PEERS)]
    for each in records:
        world.add(each, records)
    world.run(40)
    return world


def knowing(world: ExchangeWorld, knows: Callable[[Member], bool]) -> int:
    return sum(knows(member) for member in world.members.values() if not member.lost)


def test_everybody_knows_of_everybody_and_nobody_is_taken_for_lost(world: ExchangeWorld) -> None:
    for _ in range(6):
        world.run(10)
        assert knowing(world, lambda member: len(member.exchange.table) == PEERS) == PEERS
    assert world.refused == 0


def test_a_newcomer_is_known_to_all_in_a_few_seconds_and_to_data_peers_at_once(world: ExchangeWorld) -> None:
    others = [member.record for member in world.members.values()]
    newcomer = world.add(record(50), others).record.peer
    world.run(0.75)
    assert all(newcomer in world.members[peer(number)].records(world.now) for number in range(DATA_PEERS))
    world.run(FEW_S)
    assert knowing(world, lambda member: newcomer in member.records(world.now)) == PEERS + 1


def test_news_of_a_data_peer_is_known_to_all_in_a_few_seconds(world: ExchangeWorld) -> None:
    world.publish(world.members[peer(0)], flows_iteration=7, flows=("a",))
    world.run(FEW_S)
    assert knowing(world, lambda member: member.records(world.now)[peer(0)].flows == ("a",)) == PEERS


def test_who_ends_without_a_word_is_forgotten_within_a_lifetime(world: ExchangeWorld) -> None:
    world.members[peer(7)].lost = True
    world.run(LIFETIME_S + RECORD_PERIOD_S)
    assert knowing(world, lambda member: len(member.exchange.table) == PEERS - 1) == PEERS - 1


def test_who_starts_again_has_all_and_is_believed_anew(world: ExchangeWorld) -> None:
    world.members[peer(7)].lost = True
    world.run(5)
    known = [member.record for member in world.members.values()]
    again = world.add(replace(record(7), sequence_number=1000, capacity=2), known)
    world.run(FEW_S)
    assert len(again.exchange.table) == PEERS
    assert knowing(world, lambda member: member.records(world.now)[peer(7)].capacity == 2) == PEERS


def test_those_that_withhold_what_they_know_blind_nobody(world: ExchangeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the peers answer as if nothing had happened."""
    silent = [world.members[peer(number)] for number in range(2, PEERS, 3)]
    for member in silent:
        monkeypatch.setattr(member.exchange.table, "marks_since", lambda since, reader, most: ([], since))
    newcomer = world.add(record(50), [member.record for member in world.members.values()]).record.peer
    world.run(4 * FEW_S)
    assert knowing(world, lambda member: newcomer in member.records(world.now)) == PEERS + 1


def test_an_idle_peer_sends_about_as_much_in_a_swarm_of_four_times_its_size(world: ExchangeWorld) -> None:
    before = world.sent_bytes.total()
    world.run(60)
    each_s = (world.sent_bytes.total() - before) / 60 / PEERS
    assert each_s < 1000, "a record is 1,600 bytes: nobody may send it every period"


# ---- one peer


def refusing(data: bytes) -> Statement:
    raise RemoteProtocolError("not signed")


def alone(opener: Callable[[bytes], Statement] = refusing) -> Exchange:
    exchange = Exchange(peer(0), b"own log.", Random(0), opener)
    exchange.partners.can_ask([peer(1), peer(2)], [])
    return exchange


def question(**changes: object) -> Header:
    return {"kind": ASK, "log": b"log", "of": b"", "since": 0, "marks": b"", "orders": b"", **changes}


STRANGE = [
    {"log": 5}, {"log": b"x" * 9}, {"of": None}, {"since": -1}, {"since": "1"}, {"since": True}, {"marks": None},
    {"marks": b"x"}, {"marks": bytes(MARK_BYTES * (MOST_MARKS + 1))}, {"marks": b"\xff" * MARK_BYTES},
]  # fmt: skip


@pytest.mark.parametrize("changes", STRANGE)
def test_a_strange_question_or_answer_is_refused(changes: Header) -> None:
    exchange = alone()
    with pytest.raises(RemoteProtocolError):
        exchange.asked(peer(1), question(**changes), NOW)
    if "of" not in changes and changes.get("since") is None:
        exchange.ask(peer(1), NOW)
        with pytest.raises(RemoteProtocolError):
            exchange.heard(peer(1), {"log": b"log", "to": 0, "marks": b"", **changes}, NOW)
        assert peer(1) not in exchange.due(NOW + 20), "and is left out"


@pytest.mark.parametrize("owners", [None, b"x", bytes(OWNER_BYTES * (MOST_FETCHED + 1))])
def test_strange_owners_are_refused(owners: object) -> None:
    with pytest.raises(RemoteProtocolError):
        alone().giving.fetched_by(peer(1), {"kind": FETCH, "owners": owners}, NOW)


SIGN = bytes(16)


@pytest.mark.parametrize(
    "records",
    [None, [5], [b"x"], [[b"x", 0]], [[b"x", -1, SIGN]], [[b"x", True, SIGN]], [[b"x", 1000, SIGN]], [[b"x", 0, SIGN]] * 65],
)
def test_strange_statements_are_refused_and_their_giver_left_out(records: object) -> None:
    exchange = alone(lambda data: statement(record(1)))
    with pytest.raises(RemoteProtocolError):
        exchange.brought(peer(1), {"records": records}, NOW)
    assert peer(1) not in exchange.due(NOW + 20)


def test_what_nobody_has_signed_is_not_held_and_is_fetched_of_another() -> None:
    exchange = alone()
    for giver in (peer(1), peer(2)):
        exchange.asked(giver, question(marks=pack_marks([life(9, 0)])), NOW)
    assert exchange.wanted.givers() == [peer(1)]
    exchange.fetch(peer(1))
    with pytest.raises(RemoteProtocolError):
        exchange.brought(peer(1), {"records": [[b"x", 0, SIGN]]}, NOW)
    assert not exchange.table.records(NOW)
    assert exchange.wanted.givers() == [peer(2)]
    assert exchange.fetch(peer(2))["owners"] == short(peer(9))


def test_a_stranger_is_heard_of_itself_alone_and_who_was_caught_lying_of_nothing() -> None:
    exchange = alone()
    exchange.asked(peer(3), question(marks=pack_marks([life(3, 0), life(8, 0), life(9, 0)])), NOW)
    assert exchange.fetch(peer(3))["owners"] == short(peer(3))
    exchange.lied(peer(1), NOW)
    exchange.asked(peer(1), question(marks=pack_marks([life(9, 0)])), NOW)
    assert len(exchange.wanted) == 1


def test_who_did_not_answer_is_heard_at_once_when_it_is_there_again() -> None:
    exchange = alone()
    exchange.ask(peer(1), NOW)
    exchange.failed(peer(1), NOW)
    assert peer(1) not in exchange.due(NOW + 5), "it is not asked again before a while"
    exchange.asked(peer(1), question(marks=pack_marks([life(1, 0)])), NOW + 5)
    assert peer(1) in exchange.wanted.givers() and not exchange.partners.is_left_out(peer(1), NOW + 5)


def test_who_tells_of_what_there_is_not_takes_no_room_from_the_others() -> None:
    exchange = alone()
    for batch in range(3):
        marks = [replace(life(9, 0), owner=number.to_bytes(OWNER_BYTES, "big")) for number in range(MOST_MARKS)]
        exchange.asked(peer(1), question(marks=pack_marks([replace(mark, sequence_number=batch + 1) for mark in marks])), NOW)
        exchange.asked(
            peer(1), question(marks=pack_marks([replace(m, owner=b"%04d" % batch + m.owner[4:]) for m in marks])), NOW
        )
    assert len(exchange.wanted) == MOST_OF_ONE
    exchange.asked(peer(2), question(marks=pack_marks([life(9, 0)])), NOW)
    assert peer(2) in exchange.wanted.givers()


def test_who_brings_only_some_is_asked_for_the_rest_and_who_brings_nothing_is_not() -> None:
    made = {b"a": statement(record(8)), b"b": statement(record(9))}
    exchange = alone(made.__getitem__)
    exchange.asked(peer(1), question(marks=pack_marks([life(8, 0), life(9, 0)])), NOW)
    exchange.fetch(peer(1))
    assert exchange.brought(peer(1), {"records": [[b"a", 0, SIGN]]}, NOW)
    assert exchange.fetch(peer(1))["owners"] == short(peer(9))
    assert not exchange.brought(peer(1), {"records": []}, NOW)
    assert not exchange.wanted.givers()


def test_who_asks_without_end_is_refused_and_others_are_not() -> None:
    exchange = alone()
    for number in (1, 2):
        exchange.table.take(statement(record(number)), peer(number), NOW)
    with pytest.raises(RemoteProtocolError, match="too often"):
        for _ in range(1000):
            exchange.asked(peer(1), question(), NOW)
    exchange.asked(peer(2), question(), NOW)
    exchange.asked(peer(1), question(), NOW + 1)


def test_nobody_gets_more_statements_than_its_share() -> None:
    exchange = alone()
    for number in range(1, 60):
        exchange.table.take(statement(record(number)), peer(number), NOW)
    owners = b"".join(short(peer(number)) for number in range(1, 60))
    size = len(statement(record(1)).signed)
    got = sum(len(exchange.giving.fetched_by(peer(1), {"kind": FETCH, "owners": owners}, NOW)["records"]) for _ in range(59))
    assert got * size < 59 * 59 * size
    assert exchange.giving.fetched_by(peer(2), {"kind": FETCH, "owners": owners}, NOW)["records"]


def test_what_this_peer_has_stated_in_a_life_before_is_not_believed() -> None:
    exchange = alone(lambda data: statement(record(0)))
    assert not exchange.brought(peer(1), {"records": [[b"x", 0, SIGN]]}, NOW)
    assert not exchange.table.records(NOW)


def test_who_has_other_orders_is_asked_for_them_once() -> None:
    exchange = alone()
    exchange.orders = b"ours"
    exchange.asked(peer(1), question(orders=b"theirs"), NOW)
    exchange.asked(peer(2), question(orders=b"ours"), NOW)
    assert exchange.orders_of() == [peer(1)]
    assert exchange.orders_of() == []
