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
from gwtf_p2p.live.discovery.run_trust import NotSecret, RunConflict, TokenNeeded, Trusted
from gwtf_p2p.live.discovery.signing import OwnedRun, own
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.run_secret import SEALED, RunSecret
from gwtf_p2p.live.peer.config import PeerConfig, RunMismatch
from gwtf_p2p.live.peer.join import find_run
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.protocol.errors import OtherWireVersion
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, RunRecord
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


def junk(owner: Identity) -> tuple[OwnedRun, OwnedRun]:
    """What looks like a secret run, and like one of another wire version, and is nobody's."""
    return OwnedRun(RUN, SEALED), own(owner, replace(RUN, wire_version=WIRE_VERSION + 1))


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


@pytest.mark.parametrize("which", [0, 1])
async def test_what_a_stranger_publishes_keeps_nobody_from_a_run_on_its_disk_or_of_its_own(
    network: Network, owners: tuple[Identity, Identity], tmp_path: Path, which: int
) -> None:
    """After a power cut a stranger's record may be the only one; it says nothing that only the owner can say."""
    kept, run = KeptRuns(network.identity, tmp_path / "disk"), own(owners[0], RUN)
    kept.keep(run)
    await network.dht.publish_run(junk(owners[1])[which])
    assert await found(NEWCOMER, network, kept) == run
    await network.dht.publish_run(junk(owners[1])[which])
    begun = await found(replace(NEWCOMER, new_run=RUN), network, kept)
    assert begun is not None and begun.owner == network.identity.peer_id


@pytest.mark.parametrize(("which", "error"), [(0, TokenNeeded), (1, RunMismatch)])
async def test_a_newcomer_is_told_why_it_cannot_join_unless_the_run_comes_first(
    network: Network, owners: tuple[Identity, Identity], which: int, error: type[RunConflict | RunMismatch]
) -> None:
    kept, run = KeptRuns(network.identity, None), own(owners[0], RUN)
    await network.dht.publish_run(junk(owners[1])[which])
    waiting = asyncio.ensure_future(found(NEWCOMER, network, kept))
    await network.dht.publish_run(run)
    assert await waiting == run
    await network.dht.publish_run(junk(owners[1])[which])
    with pytest.raises(error) as refused:
        await found(NEWCOMER, network, kept)
    assert getattr(refused.value, "exit_code") == 5  # noqa: B009


async def test_only_the_named_owners_word_counts_about_another_wire_version(
    network: Network, owners: tuple[Identity, Identity]
) -> None:
    await network.dht.publish_run(junk(owners[1])[1])
    assert await network.dht.read_run(RUN.run_id, Trusted(wanted=owners[0].peer_id)) is None
    with pytest.raises(OtherWireVersion):
        await network.dht.read_run(RUN.run_id, Trusted(wanted=owners[1].peer_id))


async def test_who_has_a_token_is_told_that_an_open_run_needs_none(network: Network, owners: tuple[Identity, Identity]) -> None:
    await network.dht.publish_run(own(owners[0], RUN))
    secret = RunSecret("sixteen characters of a token", RUN.run_id)
    network.dht.options = replace(network.dht.options, secret=secret)
    with pytest.raises(NotSecret, match="this run is not secret: leave --token") as refused:
        await found(NEWCOMER, replace(network, secret=secret), KeptRuns(network.identity, None))
    assert refused.value.exit_code == 5
