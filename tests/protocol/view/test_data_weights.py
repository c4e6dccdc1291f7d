"""Embedding and head are taken of the position that half of the data peers have reached, and below it where that fails."""

from __future__ import annotations

import pytest

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.data_weights import Position, positions_to_take
from gwtf_p2p.protocol.wire.records import PeerState
from tests.protocol.peers import record, view


def tried(*positions: Position) -> list[tuple[Position, tuple[PeerId, ...]]]:
    records = [record(PeerId(f"d{n}"), stage=0, epoch=e, weights_version=v) for n, (e, v) in enumerate(positions)]
    return list(positions_to_take(view(records)))


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([], []),
        ([(0, 5)], [((0, 5), ("d0",))]),
        ([(0, 5), (0, 6)], [((0, 6), ("d1",)), ((0, 5), ("d0",))]),
        ([(0, 5), (0, 10**9), (0, 5)], [((0, 5), ("d0", "d2"))]),
        ([(0, 5), (7, 1), (0, 6), (0, 6)], [((0, 6), ("d2", "d3")), ((0, 5), ("d0",))]),
        ([(1, 3), (1, 3), (0, 9)], [((1, 3), ("d0", "d1")), ((0, 9), ("d2",))]),
    ],
    ids=["nobody", "one", "one of two is further", "a liar of three", "another epoch of one", "the swarm went back"],
)
def test_one_data_peer_does_not_say_alone_how_far_a_run_is(positions: list[Position], expected: object) -> None:
    assert tried(*positions) == expected


def test_only_data_peers_that_are_online_are_asked() -> None:
    records = [record(PeerId("d0"), stage=0, weights_version=4), record(PeerId("s"), stage=1, weights_version=4)]
    away = record(PeerId("d1"), PeerState.DRAINING, stage=0, weights_version=9)
    assert positions_to_take(view([*records, away])) == (((0, 4), (PeerId("d0"),)),)
