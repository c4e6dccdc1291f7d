"""What a view is made of, and what of it counts nowhere."""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import StageRecord
from tests.protocol.peers import A2, A, B, C, D, record

STAGES = 2


def test_who_signs_a_record_of_a_stage_that_the_run_does_not_have_is_in_no_view_and_no_plan() -> None:
    """Anybody may sign one about itself, and have it passed on by the exchange."""
    ours = [record(PeerId(name), stage=stage, sequence_number=1) for name, stage in (("data", 0), ("one", 1), ("two", 2))]
    strangers: list[StageRecord] = [record(PeerId(f"far{stage}"), stage=stage) for stage in (STAGES + 1, 64)]
    one_of_us = replace(ours[1], stage=Stage(STAGES + 1), sequence_number=2)
    view = NetworkView.of([*ours, *strangers, one_of_us], STAGES, 1000)
    assert set(view.records) == {PeerId("data"), PeerId("one"), PeerId("two")}
    figures, why = figures_of(view, frozenset())
    assert figures is not None, why
    assert pipeline_of(figures).stage_peers == ((0,), (1,), (2,))


def test_what_is_different_since_a_former_view() -> None:
    former = NetworkView.of([record(D), record(A), record(B), record(C)], 3, 8)
    moved = replace(record(B), stage=Stage(3), sequence_number=2)
    now = NetworkView.of([former.records[D], replace(former.records[A], sequence_number=2), moved, record(A2)], 3, 8, former)
    changes = now.since(former)
    assert changes.other == {A, B, C, A2}
    assert changes.left == ((C, Stage(3)), (B, Stage(2)))
    assert now.since(former) is changes
    assert NetworkView.of(now.records.values(), 3, 8, now).since(now).other == frozenset()
