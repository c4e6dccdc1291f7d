"""State is for peers of the run: a live donor refuses an identity without a record, and gives to one that has published one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from gwtf_p2p.live.discovery.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.peer.local_swarm import LocalSwarm
from gwtf_p2p.live.peer.record_keeper import asking_record
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.live.state import transfer
from gwtf_p2p.live.state.transfer import StateDownload, StateRefused, StateUnavailable
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.trust.state_access import WhyNoState
from gwtf_p2p.protocol.wire.records import PeerState
from tests.live.peer.test_life import RUN, expect

pytestmark = pytest.mark.live

STAGE = Stage(1)


async def why_not(download: StateDownload, donor: PeerId, stage: Stage, version: int | None = None) -> WhyNoState | None:
    """None when it is given; without a version, the newest that it keeps, which is soon an old one."""
    while True:
        wanted = version if version is not None else max((await download.listed(donor, stage))[1], default=0)
        try:
            await download.fetch(wanted, [donor], stage)
        except StateUnavailable as error:
            if error.refused:
                return error.refused[0].why
            if version is not None:
                raise
            continue
        return None


async def asks(there: str, folder: Path, donors: tuple[PeerId, PeerId]) -> None:
    """As an outsider, as one that only asks, and as a newcomer. `donors`: a data peer and a stage peer."""
    identity = create_identity(folder / "outsider.key")
    daemon = await start_daemon(P2POptions.on_this_machine(there), identity)
    dht: Dht = await start_dht(daemon, identity, DhtOptions(RUN.run_id, client_mode=True))
    rpc = Rpc(daemon, RUN.run_id)
    try:
        await rpc.start(_Deaf())
        data_peer, stage_peer = donors
        download = StateDownload(rpc)
        for donor in donors:
            assert await why_not(download, donor, DATA_STAGE, 1) is WhyNoState.NO_RECORD
        with pytest.raises(StateRefused, match="no_record"):
            await download.listed(stage_peer, STAGE)

        transfer.RECORD_PATIENCE_S = 30.0
        asking = asking_record(identity.peer_id, RUN, STAGE, 1, None)
        assert await dht.publish_stage(asking)
        assert await why_not(download, data_peer, DATA_STAGE) is None
        assert await why_not(download, stage_peer, STAGE) is WhyNoState.NOT_FOR_CLIENTS

        assert await dht.publish_stage(replace(asking, state=PeerState.JOINING, sequence_number=2))
        while (why := await why_not(download, stage_peer, STAGE)) is not None:
            assert why is WhyNoState.NOT_FOR_CLIENTS, "until the donor reads the new record"
            await asyncio.sleep(transfer.RECORD_RETRY_S)
    finally:
        await rpc.stop()
        await dht.stop()
        await daemon.stop()


class _Deaf:
    """Nothing is asked of it."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def test_a_live_donor_gives_to_whoever_has_a_record_and_tells_others_why_not(
    swarm: LocalSwarm, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RECORD_PATIENCE_S", 0.0)
    start("bootstrap", "bootstrap")
    there = expect(swarm, "bootstrap", "started")["maddrs"][0]
    start("data", "data", there, new_run=replace(RUN, total_iterations=0))
    start("peer", "peer", there)
    ids = [PeerId(expect(swarm, name, "started")["peer"]) for name in ("data", "peer")]
    for name in ("data", "peer"):
        while expect(swarm, name, "stepped")["iteration"] < 4:
            pass
    uvloop.run(asks(there, swarm.folder, (ids[0], ids[1])))
