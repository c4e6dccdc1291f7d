"""One record of each owner is remembered, whatever its size and however many came before."""

from __future__ import annotations

import sys

import msgpack
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.dht_validation import Remembering
from gwtf_p2p.live.discovery.newest import NewestByOwner


class Counting(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """Finds every record valid that does not say otherwise."""

    def __init__(self) -> None:
        self.asked = 0

    def validate(self, record: DHTRecord) -> bool:
        self.asked += 1
        return b"bad" not in record.value


def record(value: bytes, owner: bytes = b"owner", at: float = 60.0) -> DHTRecord:
    return DHTRecord(b"key", msgpack.packb(owner), msgpack.packb(value), at)


def test_only_the_newest_record_of_an_owner_is_kept_and_not_its_bytes() -> None:
    newest: NewestByOwner[str, int] = NewestByOwner()
    for number in range(1000):
        newest.put("one", bytes(8000) + number.to_bytes(2), number)
    assert len(newest) == 1
    assert newest.get("one", bytes(8000) + (999).to_bytes(2)) == 999
    assert newest.get("one", bytes(8000) + (998).to_bytes(2)) is None
    assert newest.get("other", bytes(8002)) is None
    assert sys.getsizeof(newest._newest["one"][0]) < 100


def test_the_owner_that_was_heard_longest_ago_makes_room() -> None:
    newest: NewestByOwner[int, int] = NewestByOwner(most=2)
    for owner in (1, 2, 1, 3):
        newest.put(owner, b"record", owner)
    assert [newest.get(owner, b"record") for owner in (1, 2, 3)] == [1, None, 3]


def test_a_record_is_validated_once_and_another_one_anew() -> None:
    """Anything else than the very bytes with the very expiry may be forged, and one that was refused is refused again."""
    counting, now = Counting(), get_dht_time()
    remembering = Remembering([counting])
    for seen, valid, asked in (
        (record(b"a", at=now), True, 1),
        (record(b"a", at=now), True, 1),
        (record(b"a", at=now + 1), True, 2),
        (record(b"b", at=now + 1), True, 3),
        (record(b"b", b"stranger", now + 1), True, 4),
        (record(b"b", at=now + 1), True, 4),
        (record(b"bad", at=now + 2), False, 5),
        (record(b"bad", at=now + 2), False, 6),
        (record(b"b", at=now + 1), True, 6),
    ):
        assert remembering.validate(seen) is valid
        assert counting.asked == asked
