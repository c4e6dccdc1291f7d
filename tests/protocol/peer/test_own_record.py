"""What of a record is news, on which others act at once, and what may wait for the next routine record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.exchange.news import news_of
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

STAGE_PEER = StageRecord(PeerId("stage"), RunId("run"), Stage(1), PeerState.ONLINE, 2)


@pytest.mark.parametrize("change", [{"sequence_number": 2}, {"weights_version": 7}, {"occupancy": 1}, {"kept_bytes": 8}])
def test_figures_of_a_stage_peer_are_routine(change: dict[str, object]) -> None:
    assert news_of(replace(STAGE_PEER, **change)) == news_of(STAGE_PEER)


@pytest.mark.parametrize("change", [{"state": PeerState.DRAINING}, {"stage": Stage(2)}, {"capacity": 3}, {"flows": ("0:a",)}])
def test_what_others_plan_with_is_news(change: dict[str, object]) -> None:
    assert news_of(replace(STAGE_PEER, **change)) != news_of(STAGE_PEER)


def test_a_step_of_a_data_peer_is_news() -> None:
    """Who has missed the commit learns of it so."""
    data_peer = replace(STAGE_PEER, stage=DATA_STAGE)
    assert news_of(replace(data_peer, weights_version=7)) != news_of(data_peer)
