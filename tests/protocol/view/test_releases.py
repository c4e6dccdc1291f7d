"""Whether others run a newer release: compared by its numbers, and nothing that a stranger writes there is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.releases import newer_release
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("0.1.0", ["0.1.0", "0.0.9"], ("", 0)),
        ("0.9.0", ["0.10.0", "0.9.0", "0.9.1"], ("0.10.0", 2)),
        ("1.0", ["1.0.1rc2"], ("1.0.1rc2", 1)),
        ("0.1.0", ["", "newest!", "v9", "٣.٠"], ("", 0)),
        ("0.1.0", ["9" * 32], ("9" * 32, 1)),
        ("0.1.0", [], ("", 0)),
    ],
)
def test_the_newest_of_the_newer_ones_is_told_and_how_many_run_one(
    own: str, others: list[str], expected: tuple[str, int]
) -> None:
    peer = StageRecord(PeerId("a"), RunId("r"), Stage(1), PeerState.ONLINE, 1)
    records = [replace(peer, peer=PeerId(f"peer_{n}"), release=release) for n, release in enumerate(others)]
    assert newer_release(own, records) == expected
