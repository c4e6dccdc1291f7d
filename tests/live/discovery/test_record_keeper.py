"""When a peer sees what the others' records say: at once what is exchanged, else when it reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from hivemind.utils.timed_storage import get_dht_time

from examples.toy_router import FastestRouter
from experiments.support.live_swarm import SmallRun
from gwtf_p2p.live.discovery.dht import Records
from gwtf_p2p.live.exchange.exchanging import RecordExchange
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.peer import record_keeper
from gwtf_p2p.live.peer.assembly import Place
from gwtf_p2p.live.peer.record_keeper import KeptAlive, RecordKeeper
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.exchange.alive import SIGN_BYTES
from gwtf_p2p.protocol.exchange.pace import RECORD_PERIOD_S
from gwtf_p2p.protocol.exchange.stated import Stated
from gwtf_p2p.protocol.exchange.table import Statement
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.factory import PeerSettings, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeer, StagePeerConfig
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord, encode
from tests.live.conftest import DEADLINE_S

RUN = SmallRun(stages=1, peers_per_stage=2).record()
ME, OTHER = PeerId("me"), PeerId("other")


class Published:
    """A DHT in which `state` is what the other peer's record says; each reading is noted."""

    def __init__(self, state: PeerState) -> None:
        self.state, self.read = state, asyncio.Event()

    async def read_stages(self, run_id: RunId, stages: Iterable[Stage]) -> list[StageRecord]:
        self.read.set()
        return [StageRecord(OTHER, run_id, Stage(1), self.state, capacity=1, model_hash=RUN.model_hash)]


class NoPlane:
    """A data plane on which nobody is: nothing is exchanged."""

    peer_id = ME

    @staticmethod
    def add_service(kind: str, service: object) -> None:
        """Nobody asks for it."""


class Kept:
    """Of the run: what a keeper needs to read."""

    record: RunRecord = RUN


def serving() -> StagePeer:
    machine = compose(PeerSettings(ME, Stage(1), 1, router=None, stage_peer=StagePeerConfig(capacity=1)), FastestRouter())
    assert isinstance(machine, StagePeer)
    machine.handle(ev.Started(), 0.0)
    machine.handle(ev.ViewChanged(NetworkView.of([], 1, 1024)), 0.0)
    assert machine.membership.serves
    return machine


async def test_news_that_is_exchanged_is_seen_without_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a peer that has come back; the DHT is read once in an hour, here."""
    monkeypatch.setattr(record_keeper, "LOOK_S", 3600.0)
    dht, views = Published(PeerState.SYNCING), asyncio.Queue[NetworkView]()
    kept_alive = KeptAlive(cast(Any, Kept), cast(Any, None))
    exchange = RecordExchange(cast(Any, NoPlane), cast(Any, None), RUN.run_id)
    keeper = RecordKeeper((cast(Records, dht), exchange), kept_alive, Place(Stage(1)), LinkProbes(lambda: 0.0))
    machine = serving()

    def changed(view: NetworkView) -> None:
        machine.handle(ev.ViewChanged(view), 0.0)
        views.put_nowait(view)

    looking = asyncio.ensure_future(keeper.keep_looking(machine, changed))
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert (await views.get()).records[OTHER].state is PeerState.SYNCING
            dht.read.clear()
            [former] = await dht.read_stages(RUN.run_id, [Stage(1)])
            back = replace(former, state=PeerState.ONLINE, sequence_number=1)
            now = get_dht_time()
            stated = Stated(encode(back), now + 30.0, RECORD_PERIOD_S, bytes(SIGN_BYTES))
            dht.read.clear()
            assert exchange._machine.table.take(Statement(b"signed", stated, back), OTHER, now)
            exchange.on_news()
            assert (await views.get()).records[OTHER].state is PeerState.ONLINE
            assert not dht.read.is_set()
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
