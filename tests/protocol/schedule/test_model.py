"""The forecast against iterations worked out by hand, and against the bounds that no iteration can beat.

The small pipelines have data peer 0 and stage peers from 1 on; microseconds and bytes. A transfer alone takes 2 + 10 / 5 = 4.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.schedule.first_paths import first_paths
from gwtf_p2p.protocol.schedule.from_view import _FIGURES, figures_of, pipeline_of
from gwtf_p2p.protocol.schedule.model import UNLIMITED, Link, Pipeline, forecast
from gwtf_p2p.protocol.view.hop_cost import HopBytes
from gwtf_p2p.protocol.view.network_view import NetworkView
from tests.exploring import examples
from tests.protocol.flow.problems import Size, random_view

EMBED, LOSS, FINISH, FORWARD, BACKWARD, TRANSFER = 1.0, 2.0, 1.0, 3.0, 6.0, 4.0


def small(stage_peers: int = 1, slots: int = UNLIMITED, bandwidth: float = 5.0, line: float = float("inf")) -> Pipeline:
    """One stage; only the data peer's line limits."""
    peers = 1 + stage_peers
    return Pipeline(
        peers=tuple(PeerId(f"p{i}") for i in range(peers)),
        stages=1,
        hops=HopBytes(1, 10.0, 10.0),
        slots=(UNLIMITED, *[slots] * stage_peers),
        before_us=(EMBED, *[FORWARD] * stage_peers),
        after_us=(FINISH, *[BACKWARD] * stage_peers),
        loss_us=(LOSS, *[0.0] * stage_peers),
        line=(line, *[float("inf")] * stage_peers),
        starts_us=(0.0,) * peers,
        demand=((0, 2),),
        stage_peers=((0,), tuple(range(1, peers))),
        links={i * peers + j: Link(2.0, bandwidth) for i in range(peers) for j in range(peers) if i != j},
    )


def test_one_microbatch_takes_the_sum_of_its_steps() -> None:
    alone = forecast(small(), [(0, 1)])
    assert alone.makespan_us == EMBED + FORWARD + LOSS + BACKWARD + FINISH + 4 * TRANSFER
    assert alone.release_us == [0.0] and alone.wait_us == [0.0]
    assert alone.offered_us[0][1] == EMBED + 2.0, "the first byte comes a latency after the embedding"


def test_gradients_take_the_time_of_their_own_bytes() -> None:
    pipeline = replace(small(), hops=HopBytes(1, 10.0, 30.0))
    assert forecast(pipeline, [(0, 1)]).makespan_us == EMBED + FORWARD + LOSS + BACKWARD + FINISH + 4 * TRANSFER + 2 * 4.0
    assert pipeline.there_and_back_us(0, 0, 1) == 2 * TRANSFER + 4.0


def test_a_second_microbatch_waits_for_the_slot_and_leaves_when_the_first_begins() -> None:
    """The first: forward 5-8, loss 12-14, backward 18-24. The second arrives at 10 and waits until 24."""
    both = forecast(small(slots=1), [(0, 1), (0, 1)])
    assert both.finish_us == [29.0, 48.0]
    assert both.release_us == [0.0, 5.0]
    assert both.wait_us == [0.0, 14.0]


def test_with_two_slots_the_second_forward_comes_before_the_first_backward() -> None:
    """The second: forward 10-13, loss 17-19, at the stage peer 23, where the first's backward ends at 24."""
    both = forecast(small(slots=2), [(0, 1), (0, 1)])
    assert both.finish_us == [29.0, 35.0]
    assert both.wait_us == [0.0, 1.0]


def test_concurrent_transfers_share_the_line_of_their_data_peer() -> None:
    """Two stage peers, so both leave at once: of the first input half is sent when the second begins to share the line."""
    both = forecast(small(stage_peers=2, bandwidth=10.0, line=5.0), [(0, 1), (0, 2)])
    assert both.finish_us == [31.0, 33.0]


def test_a_data_peer_that_begins_later_releases_later() -> None:
    late = small()
    moved = Pipeline(**{**{f: getattr(late, f) for f in late.__dataclass_fields__}, "starts_us": (7.0, 0.0)})
    assert forecast(moved, [(0, 1)]).release_us == [7.0]
    assert forecast(moved, [(0, 1)]).makespan_us == 7.0 + forecast(late, [(0, 1)]).makespan_us


@examples(40)
@given(st.integers(0, 2**32))
def test_no_forecast_beats_what_one_stage_peer_has_to_do(seed: int) -> None:
    view = random_view(np.random.default_rng(seed), Size(stages=3, stage_peers=2, data_peers=2, demand=3))
    figures, _ = figures_of(view)
    assert figures is not None
    pipeline = pipeline_of(figures)
    paths = first_paths(pipeline)
    seen = forecast(pipeline, paths)
    for stage in range(1, 4):
        for stage_peer in pipeline.stage_peers[stage]:
            work = sum(path[stage] == stage_peer for path in paths) * (
                pipeline.before_us[stage_peer] + pipeline.after_us[stage_peer]
            )
            assert seen.makespan_us >= work * (1 - 1e-12)
    alone = [forecast(pipeline, [path]).makespan_us for path in paths]
    starts = [pipeline.starts_us[path[0]] for path in paths]
    assert all(f >= a * (1 - 1e-12) for f, a in zip(seen.finish_us, alone, strict=True)), starts


def test_thin_data_peers_send_little() -> None:
    thin = replace(small(), hops=HopBytes(1, 10.0, 10.0, 5.0))
    saved = 4 * (10.0 - 5.0) / 5.0  # out and back, forwards and backwards, at 5 bytes a microsecond
    assert forecast(small(), [(0, 1)]).makespan_us - forecast(thin, [(0, 1)]).makespan_us == saved


def test_figures_are_made_once_for_a_record_and_of_the_newest_one_alone() -> None:
    view = random_view(np.random.default_rng(0), Size(stages=2, stage_peers=2, data_peers=1))
    before, _ = figures_of(view)
    again, _ = figures_of(view)
    assert before is not None and again is not None
    assert all(one is other for one, other in zip(before.peers, again.peers, strict=True))
    newer = {peer: replace(record, line_bytes_per_s=77.0) for peer, record in view.records.items()}
    after, _ = figures_of(NetworkView.of(newer.values(), view.stages, view.microbatch_bytes))
    assert after is not None and {figures.line_bytes_per_s for figures in after.peers} == {77.0}
    assert all(_FIGURES._made[peer][0] is record for peer, record in newer.items()), "no older record is kept"
