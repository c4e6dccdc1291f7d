"""When a record that is exchanged goes to the DHT too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gwtf_p2p.protocol.exchange.news import store_wait_s
from gwtf_p2p.protocol.exchange.pace import LIFETIME_PERIODS, LOOK_S, RECORD_PERIOD_S, SMALL, period_s, round_s
from gwtf_p2p.protocol.ids import DATA_STAGE
from gwtf_p2p.protocol.wire.records import Completion, LinkMeasurement, LinkSource, PeerState, StageRecord
from tests.protocol.exchange.making import peer, record

Change = Callable[[StageRecord], StageRecord]

AT_ONCE: list[Change] = [
    lambda r: replace(r, state=PeerState.DRAINING),
    lambda r: replace(r, epoch=1),
    lambda r: replace(r, maddrs=("/ip4/10.0.0.1/tcp/1",)),
    lambda r: replace(r, completion=Completion.EVERYWHERE),
    lambda r: replace(r, lost={peer(2): 1}),
]
SOON: list[Change] = [lambda r: replace(r, weights_version=3), lambda r: replace(r, flows_iteration=4)]
ROUTINE: list[Change] = [
    lambda r: replace(r, kept_bytes=7),
    lambda r: replace(r, links=(LinkMeasurement(peer(2), 0.02, 1e6, LinkSource.TRAFFIC, 3, 1.0),)),
]
NOTHING: list[Change] = [
    lambda r: r,
    lambda r: replace(r, links=tuple(replace(link, age_s=99.0) for link in r.links)),
]
WAITS = [(change, 0.0) for change in AT_ONCE]
WAITS += [(change, LOOK_S) for change in SOON]
WAITS += [(change, RECORD_PERIOD_S) for change in ROUTINE]
WAITS += [(change, 2 * RECORD_PERIOD_S) for change in NOTHING]


def stored() -> StageRecord:
    return replace(record(1, 5), stage=DATA_STAGE, links=(LinkMeasurement(peer(2), 0.01, 1e6, LinkSource.TRAFFIC, 3, 1.0),))


@pytest.mark.parametrize(("change", "wait_s"), WAITS)
def test_the_dht_waits_by_what_of_a_record_has_changed(change: Change, wait_s: float) -> None:
    before, now = stored(), replace(change(stored()), sequence_number=6)
    assert store_wait_s(now, before, 0.0, exchanges=True) == wait_s
    assert store_wait_s(now, before, wait_s, exchanges=True) == 0.0
    assert store_wait_s(now, before, 0.0, exchanges=False) == 0.0, "some have it from the DHT alone"
    assert store_wait_s(now, None, 0.0, exchanges=True) == 0.0, "nobody has kept it"


def test_a_record_is_stored_again_a_period_before_it_expires() -> None:
    assert 2 * RECORD_PERIOD_S <= (LIFETIME_PERIODS - 1) * RECORD_PERIOD_S


def test_a_sign_of_life_has_as_many_steps_in_two_periods_as_it_needs_to_reach_everybody() -> None:
    """Each doubles, at least, how many have heard of it: a peer asks and is asked once in a round."""
    for peers in (2, 3, 8, 20, 64, SMALL, 1000):
        assert 2 ** (2 * period_s(peers) / round_s(peers)) >= min(peers, 2**10), peers
    assert round_s(20) > round_s(40) > round_s(SMALL)
