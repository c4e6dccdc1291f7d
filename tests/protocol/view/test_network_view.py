"""What a view is made of, and what of it counts nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.flow.problem import hop_costs_us
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.schedule.first_paths import there_and_back_us
from gwtf_p2p.protocol.schedule.from_view import figures_of, pipeline_of
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S, ASSUMED_LATENCY_S, NetworkView
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, StageRecord
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


FAR, NEAR, OTHERS = PeerId("far"), PeerId("near"), [PeerId(f"two{i}") for i in range(4)]


def linked(peer: PeerId, stage: int, line: float, bandwidths: list[float]) -> StageRecord:
    """It has measured so much to the first of the second stage, at 0.1 s there and back."""
    links = [LinkMeasurement(to, 0.1, speed, LinkSource.PROBE, 3, 0.0) for to, speed in zip(OTHERS, bandwidths, strict=False)]
    return replace(record(peer, stage=stage), line_bytes_per_s=line, links=tuple(links))


@pytest.mark.parametrize(
    ("line", "seen", "guess"),
    [
        (4e7, [2e6, 3e6, 9e6], 3e6),  # a line that promises much, and is far from everybody
        (2e6, [9e6, 8e6], 2e6),
        (4e7, [], 4e7),
        (0.0, [], ASSUMED_BANDWIDTH_BYTES_PER_S),
    ],
)
def test_a_link_that_nobody_has_measured_is_as_those_of_its_peers_usually_are(
    line: float, seen: list[float], guess: float
) -> None:
    peers = [linked(FAR, 1, line, seen), *(linked(other, 2, 0.0, []) for other in OTHERS), linked(PeerId("data"), 0, 0.0, [])]
    view = NetworkView.of(peers, STAGES, 1000)
    link = view.link(FAR, OTHERS[-1])
    latency_s = (0.05 + ASSUMED_LATENCY_S) / 2 if seen else ASSUMED_LATENCY_S
    assert (link.latency_s, link.bandwidth_bytes_per_s, link.source) == (latency_s, guess, LinkSource.ASSUMED)
    assert view.link(OTHERS[-1], FAR) == link
    later = NetworkView.of(peers, STAGES, 1000, former=view)
    assert later.link(FAR, OTHERS[-1]) == link

    figures, why = figures_of(view, frozenset())
    assert figures is not None, why
    pipeline = pipeline_of(figures)
    number = {peer: i for i, peer in enumerate(pipeline.peers)}
    planned = pipeline.links[number[FAR] * len(number) + number[OTHERS[-1]]]
    assert planned.latency_us == pytest.approx(1e6 * latency_s)
    assert 1e6 * planned.bandwidth == pytest.approx(guess)


def test_many_links_at_once_are_predicted_as_each_is() -> None:
    near = linked(NEAR, 1, 5e6, [4e6, 1e6])
    peers = [
        linked(FAR, 1, 4e7, [3e6]),
        near,
        *(linked(other, 2, 8e6, []) for other in OTHERS),
        linked(PeerId("d"), 0, 0.0, []),
    ]
    view = NetworkView.of(peers, STAGES, 1_000_000)
    costs = hop_costs_us(view, (FAR, NEAR), tuple(OTHERS))
    assert costs.tolist() == [[view.hop_cost_us(one, other) for other in OTHERS] for one in (FAR, NEAR)]
    figures, why = figures_of(view, frozenset())
    assert figures is not None, why
    pipeline = pipeline_of(figures)
    _, first, second = pipeline.stage_peers
    both = there_and_back_us(pipeline, 1, first, second)
    assert both.ravel().tolist() == pytest.approx([pipeline.there_and_back_us(1, i, j) for i in first for j in second])


def test_a_view_without_the_same_peers_is_one_view_for_all_that_leave_them_out() -> None:
    view = NetworkView.of([record(p) for p in (D, A, A2, B, C)], 3, 1000)
    left = view.without([A, B])
    assert set(left.records) == {D, A2, C} and view.without({B, A}) is left
    assert set(view.without({B}).records) == {D, A, A2, C}
    assert NetworkView.of(view.records.values(), 3, 1000).without([A, B]) is not left
