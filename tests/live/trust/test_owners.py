"""A newcomer that sees two owners joins neither; one that knows the owner, from its user or its disk, joins that one's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.run_trust import RunConflict
from gwtf_p2p.live.discovery.signing import OwnedRun, own
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.join import find_run
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import RunRecord
from tests.live.conftest import LOCAL
from tests.protocol.wire.golden import sample

pytestmark = pytest.mark.live

RUN: RunRecord = sample(RunRecord)
NEWCOMER = PeerConfig("peer", run_id=RUN.run_id)


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    identity = create_identity(tmp_path / "peer.key")
    daemon = await start_daemon(LOCAL, identity)
    dht = await start_dht(daemon, identity, DhtOptions(RUN.run_id))
    yield Network(daemon, dht, identity)
    await dht.stop()
    await daemon.stop()


@pytest.fixture
def owners(tmp_path: Path) -> tuple[Identity, Identity]:
    return create_identity(tmp_path / "first.key"), create_identity(tmp_path / "second.key")


async def found(config: PeerConfig, network: Network, kept: KeptRuns) -> OwnedRun | None:
    heard: list[dict[str, Any]] = []
    return await find_run(config, network, kept, asyncio.Event(), heard.append)


async def test_an_owner_that_is_not_the_one_named_is_refused_with_both(
    network: Network, owners: tuple[Identity, Identity], tmp_path: Path
) -> None:
    run, kept = own(owners[0], RUN), KeptRuns(network.identity, None)
    await network.dht.publish_run(run)
    assert await found(NEWCOMER, network, kept) == run
    assert await found(replace(NEWCOMER, run_owner=run.owner), network, kept) == run
    with pytest.raises(RunConflict) as refused:
        await found(replace(NEWCOMER, run_owner=owners[1].peer_id), network, kept)
    assert refused.value.exit_code == 5
    assert owners[0].peer_id in str(refused.value) and owners[1].peer_id in str(refused.value)


async def test_a_peer_brings_back_the_run_that_it_joined_beside_a_second_record(
    network: Network, owners: tuple[Identity, Identity], tmp_path: Path
) -> None:
    """It has no owner's key, only what the owner has signed; whoever is faster with another record does not win."""
    first, second = (own(identity, RUN) for identity in owners)
    kept = KeptRuns(network.identity, tmp_path / "disk")
    kept.keep(first)
    await network.dht.publish_run(second)
    assert await found(NEWCOMER, network, kept) == first
    assert await network.dht.read_run(RUN.run_id) == first, "published again, by a peer that does not own it"
    assert await found(replace(NEWCOMER, run_owner=first.owner), network, kept) == first


async def test_a_run_is_not_begun_under_the_id_of_another_owners(network: Network, owners: tuple[Identity, Identity]) -> None:
    kept, begin = KeptRuns(network.identity, None), replace(NEWCOMER, new_run=RUN)
    run = await found(begin, network, kept)
    assert run is not None and run.owner == network.identity.peer_id
    assert await found(begin, network, kept) == await network.dht.read_run(RUN.run_id), "the owner may begin it again"
    await network.dht.publish_run(own(owners[0], RUN))
    with pytest.raises(RunConflict, match=PeerId(owners[0].peer_id)):
        await found(begin, network, kept)
