"""Who keeps copies of whose checkpoints: equal views agree, nobody keeps their own, every stage has a keeper."""

from __future__ import annotations

from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.records import PeerState, StageRecord
from gwtf_p2p.protocol.replicas import keepers, kept_by, neighbouring_stages


def view_of(stages: int, peers_per_stage: int, gone: frozenset[str] = frozenset()) -> NetworkView:
    records = [
        StageRecord(PeerId(f"p{stage}_{i}"), RunId("r"), Stage(stage), PeerState.ONLINE, 1)
        for stage in range(stages + 1)
        for i in range(peers_per_stage)
        if f"p{stage}_{i}" not in gone
    ]
    return NetworkView.of(records, stages, 1)


def test_the_stages_are_a_ring() -> None:
    assert neighbouring_stages(Stage(0), 3) == (1, 3)
    assert neighbouring_stages(Stage(2), 3) == (1, 3)
    assert neighbouring_stages(Stage(0), 1) == (1,)


def test_every_stage_is_kept_by_as_many_others_as_asked() -> None:
    view = view_of(3, 2)
    for k in range(4):
        stage = Stage(k)
        for copies in (1, 2):
            chosen = keepers(view, stage, copies)
            assert len(set(chosen)) == copies
            assert all(view.records[peer].stage in neighbouring_stages(stage, 3) for peer in chosen)
    assert sum(len(kept_by(view, peer, record.stage, 1)) for peer, record in view.records.items()) == 4


def test_a_peer_that_goes_changes_only_what_it_kept() -> None:
    full = view_of(4, 3)
    for gone in full.records:
        fewer = view_of(4, 3, frozenset({gone}))
        for k in range(5):
            before, after = keepers(full, Stage(k), 1), keepers(fewer, Stage(k), 1)
            assert after == before or before == (gone,)


def test_with_too_few_peers_whoever_is_there_keeps_it() -> None:
    view = view_of(1, 1)
    assert keepers(view, Stage(1), 5) == ("p0_0",)
