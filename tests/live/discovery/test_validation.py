"""Which keys own a record: whole ones, and nothing around them."""

from __future__ import annotations

import msgpack
import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.dht_validation import RecordBounds
from gwtf_p2p.live.libp2p.run_secret import SEAL_BYTES
from gwtf_p2p.protocol.wire.records import MAX_RECORD_BYTES

OWNER = b"[owner:ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7]"


@pytest.mark.parametrize(
    ("subkey", "valid"),
    [(OWNER, True), (OWNER + b"1", False), (b"1" + OWNER, False), (OWNER + OWNER, False), (b"", False)],
)
def test_a_subkey_is_a_public_key_and_nothing_else(subkey: bytes, valid: bool) -> None:
    """Else one key could own any number of records, which every reader has to look at."""
    record = DHTRecord(b"key", msgpack.packb(subkey), msgpack.packb(b"value"), get_dht_time() + 60)
    assert RecordBounds().validate(record) is valid


def test_the_value_is_bytes_of_a_bounded_length() -> None:
    most = MAX_RECORD_BYTES + SEAL_BYTES
    for value, valid in ((b"value", True), (bytes(most), True), (bytes(most + 1), False), ("text", False), (b"", True)):
        record = DHTRecord(b"key", msgpack.packb(OWNER), msgpack.packb(value), get_dht_time() + 60)
        assert RecordBounds().validate(record) is valid, value[:5]
