"""What of a record is news, on which others act at once, and what may wait for the next routine record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.exchange.news import news_of
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.protocol.view.plans import tag
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from tests.protocol.peers import A2, A, B, C, Driven, data_peer, in_step, online, record

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


def test_whom_a_data_peer_holds_for_lost_is_news() -> None:
    data_peer = replace(STAGE_PEER, stage=DATA_STAGE)
    assert news_of(replace(data_peer, lost={"tag": 1})) != news_of(data_peer)


def lost_in(driven: Driven) -> dict[str, int]:
    return dict(stage_record(driven.machine, OwnMeasurements(RunId("r")), 1).lost)


def test_a_data_peer_tells_at_once_whom_it_holds_for_lost_and_who_is_back() -> None:
    driven = online(data_peer(), [record(A, sequence_number=5), A2, B, C])
    driven.loses(A)
    assert driven.did(ef.Publish) and lost_in(driven) == {tag(A): 5}
    driven.sees([record(driven.me), record(A, PeerState.SYNCING, sequence_number=6), A2, B, C])
    driven.handle(ev.CheckAnswered(A, (), 0.1))
    assert driven.did(ef.Publish) and not lost_in(driven)
    driven.loses(A)
    driven.sees([record(driven.me), A2, B, C])
    assert not lost_in(driven), "nobody counts one without a record"


def test_a_stage_peer_tells_nothing_of_those_it_holds_for_lost() -> None:
    driven = in_step()
    driven.sees([record(PeerId("data_0")), A, B, C])
    driven.loses(B)
    assert driven.machine.ctx.liveness.is_lost(B) and not lost_in(driven)
