"""Records between real DHT peers: what is read back, and what is never believed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hivemind.p2p import P2PContext
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.clock_skew import ClockVerdict, check_clock, judge_offsets
from gwtf_p2p.live.discovery.dht import Dht, DhtOptions, start_dht
from gwtf_p2p.live.discovery.dht_validation import MAX_LIFETIME_S, peer_of_owner
from gwtf_p2p.live.discovery.entry import dht_id_of
from gwtf_p2p.live.discovery.run_trust import RunConflict, Trusted
from gwtf_p2p.live.discovery.signing import OwnedRun, own, sign
from gwtf_p2p.live.libp2p.daemon import Daemon, NetworkUnreachable, start_daemon
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.protocol.errors import InputError, OtherWireVersion, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.contributions import Contribution, Contributions
from gwtf_p2p.protocol.view.contributions_told import pages_of
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, PeerState, RunRecord, StageRecord, Timing, encode
from gwtf_p2p.protocol.wire.signed import run_key, stage_key
from tests.live.conftest import DEADLINE_S, RUN

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    folder = tmp_path_factory.mktemp("identities")
    return [create_identity(folder / f"{n}.key") for n in range(4)]


@dataclass
class DhtPeer:
    daemon: Daemon
    dht: Dht
    identity: Identity


StartDht = Callable[..., Awaitable[DhtPeer]]


@pytest.fixture
async def start(identities: list[Identity]) -> AsyncIterator[StartDht]:
    peers: list[DhtPeer] = []
    unused: Iterator[Identity] = iter(identities)

    async def start_one(run_id: RunId | None = RUN, *, client_mode: bool = False, period_s: float = 15.0) -> DhtPeer:
        initial = parse_initial_peers(await peers[0].daemon.maddrs(), {}) if peers else ()
        identity = next(unused)
        daemon = await start_daemon(P2POptions(initial, auto_nat=False, nat_port_map=False, check_identity=False), identity)
        dht = await start_dht(daemon, identity, DhtOptions(run_id, period_s, client_mode))
        peers.append(DhtPeer(daemon, dht, identity))
        return peers[-1]

    yield start_one
    for peer in peers:
        await peer.dht.stop()
        await peer.daemon.stop()


def run_record(**changes: object) -> RunRecord:
    record = RunRecord(RUN, {"model_type": "llama", "hidden_size": 64}, ((0, 2), (2, 4)), 7, 32, 4, 8)
    return replace(record, **changes)  # type: ignore[arg-type]


def stage_record(peer: PeerId, stage: int = 1, **changes: object) -> StageRecord:
    record = StageRecord(peer, RUN, Stage(stage), PeerState.ONLINE, 4, forward=Timing(0.01, 5, 0.5))
    return replace(record, **changes)  # type: ignore[arg-type]


async def test_a_record_that_is_given_up_while_it_is_stored_leaves_no_task_behind(start: StartDht) -> None:
    """At whatever moment of hivemind's traversal: Python would tell of each that it was destroyed while it was pending."""
    await start(None)
    peer = await start()
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(str(context["message"])))
    for moments in range(2, 30):
        storing = asyncio.ensure_future(peer.dht.publish_stage(stage_record(peer.identity.peer_id, moments)))
        for _ in range(moments):
            await asyncio.sleep(0)
        storing.cancel()
        await asyncio.gather(storing, return_exceptions=True)
    gc.collect()
    await asyncio.sleep(0)
    assert not told


async def test_records_are_read_by_all_through_a_bootstrap_peer_that_knows_no_run(start: StartDht) -> None:
    """A joining peer needs an initial peer and a run id, nothing else; client-mode peers publish and read too."""
    await start(None)
    a, b, behind_nat = await start(), await start(), await start(client_mode=True)
    run = own(a.identity, run_record())
    assert await a.dht.publish_run(run)
    records = [stage_record(a.identity.peer_id), stage_record(b.identity.peer_id), stage_record(behind_nat.identity.peer_id, 2)]
    for peer, record in zip((a, b, behind_nat), records, strict=True):
        assert await peer.dht.publish_stage(record)
    expected = sorted(records, key=lambda record: (record.stage, record.peer))
    for peer in (a, b, behind_nat):
        assert await peer.dht.read_run(RUN) == run
        assert await peer.dht.read_stages(RUN, [Stage(0), Stage(1), Stage(2)]) == expected
        assert not peer.dht.dropped


async def test_a_record_that_machines_have_already_is_kept(start: StartDht, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that joins may have been given it by another machine before its owner comes with it."""
    a, b = await start(), await start()
    now = get_dht_time()
    monkeypatch.setattr("gwtf_p2p.live.discovery.dht.get_dht_time", lambda: now)  # equal expiries: the second is refused
    record = stage_record(a.identity.peer_id)
    assert await a.dht.publish_stage(record) and await a.dht.publish_stage(record)
    assert [found.peer for found in await b.dht.read_stages(RUN, [Stage(1)])] == [a.identity.peer_id]


async def test_a_newer_record_replaces_the_older_and_old_ones_expire(start: StartDht) -> None:
    a, b = await start(), await start(period_s=0.05)
    for number in range(3):
        await a.dht.publish_stage(stage_record(a.identity.peer_id, occupancy=number, sequence_number=number))
    [record] = await b.dht.read_stages(RUN, [Stage(1)])
    assert record.sequence_number == record.occupancy == 2
    await b.dht.publish_stage(stage_record(b.identity.peer_id))
    async with asyncio.timeout(DEADLINE_S):
        while [r.peer for r in await a.dht.read_stages(RUN, [Stage(1)])] != [a.identity.peer_id]:
            pass


async def test_a_peer_that_starts_again_is_the_same_dht_peer(start: StartDht) -> None:
    """Otherwise each start would leave an id behind, and copies of records would be counted that are on one machine."""
    a, b = await start(), await start()
    for _ in range(2):
        await b.dht.stop()
        await b.daemon.stop()
        initial = parse_initial_peers(await a.daemon.maddrs(), {})
        options = P2POptions(initial, auto_nat=False, nat_port_map=False, check_identity=False)
        b.daemon = await start_daemon(options, b.identity)
        b.dht = await start_dht(b.daemon, b.identity, DhtOptions(RUN, 15.0, False))
        assert await b.dht.publish_stage(stage_record(b.identity.peer_id))
    table = a.dht._node.protocol.routing_table.uid_to_peer_id
    ids = [uid for uid, peer in table.items() if peer.to_base58() == b.identity.peer_id]
    assert ids == [dht_id_of(b.identity.peer_id)]


async def test_what_its_signer_may_not_say_is_dropped_and_counted(start: StartDht) -> None:
    a, b, c = await start(), await start(), await start()
    node, key = b.dht._node, stage_key(RUN, Stage(1))

    async def publish(value: bytes) -> None:
        assert await node.store(key, value, get_dht_time() + 60 + len(a.dht.dropped), subkey=b.dht._owner)

    await c.dht.publish_stage(stage_record(c.identity.peer_id))
    lies = {
        "forged": encode(stage_record(a.identity.peer_id)),
        "misplaced": encode(stage_record(b.identity.peer_id, 2)),
        "version": encode(stage_record(b.identity.peer_id, wire_version=99)),
        "format": b"\xc1 not a record",
    }
    for reason, value in lies.items():
        await publish(value)
        assert [r.peer for r in await a.dht.read_stages(RUN, [Stage(1)])] == [c.identity.peer_id]
        assert a.dht.dropped[reason] == 1


async def test_records_that_break_the_rules_are_stored_nowhere(start: StartDht) -> None:
    a, b = await start(None), await start()
    node, key, owner, soon = b.dht._node, stage_key(RUN, Stage(1)), b.dht._owner, get_dht_time() + 60
    value = encode(stage_record(b.identity.peer_id))
    assert await node.store(key, value, soon, subkey=owner)
    assert not await node.store(key, value, soon + 1, subkey=a.dht._owner), "signed by another key than the subkey's"
    assert not await node.store(key, value, soon + 2, subkey="b"), "owned by nobody"
    assert not await node.store(key, value, soon + 3), "no subkey"
    assert not await node.store(key, value, get_dht_time() + MAX_LIFETIME_S + 60, subkey=owner), "would live too long"
    assert not await node.store(key, bytes(8300), soon + 4, subkey=owner), "too big"
    assert not await node.store(key, "text", soon + 5, subkey=owner), "not bytes"
    assert len(await b.dht.read_stages(RUN, [Stage(1)])) == 1
    with pytest.raises(ValueError, match="over the bound"):
        await b.dht.publish_stage(stage_record(b.identity.peer_id, model_hash="x" * 9000))


async def test_a_run_of_another_wire_version_is_named_as_such_unless_somebody_publishes_one_that_can_be_read(
    start: StartDht,
) -> None:
    a, b = await start(), await start()
    await b.dht.publish_run(own(b.identity, run_record(wire_version=WIRE_VERSION + 1)))
    with pytest.raises(OtherWireVersion, match=f"speaks {WIRE_VERSION}, the record says {WIRE_VERSION + 1}"):
        await a.dht.read_run(RUN)
    run = own(a.identity, run_record())
    await a.dht.publish_run(run)
    assert await a.dht.read_run(RUN) == run


async def test_a_run_record_is_its_owners_whoever_publishes_it(start: StartDht) -> None:
    """A peer without the owner's key keeps the run alive; what the owner has not signed is no run record."""
    a, b = await start(), await start()
    assert await b.dht.read_run(RUN) is None
    run = own(a.identity, run_record())
    await b.dht.publish_run(run)
    assert await a.dht.read_run(RUN) == run and run.owner == a.identity.peer_id
    forged = replace(own(b.identity, run_record(seed=8)).record, owner=a.identity.peer_id)
    for lie in (encode(forged), sign(b.identity, "run", forged), bytes([*run.signed[:-40], 1, *run.signed[-39:]])):
        await b.dht.publish_run(OwnedRun(run.record, lie))
        assert await a.dht.read_run(RUN) is None
    await a.dht.publish_run(run)
    assert await a.dht.read_run(RUN) == run


async def test_a_second_run_record_under_the_id_changes_nothing_for_who_knows_the_owner(start: StartDht) -> None:
    a, b = await start(), await start()
    first, second = own(a.identity, run_record()), own(b.identity, run_record())
    await a.dht.publish_run(first)
    await b.dht.publish_run(second)
    with pytest.raises(RunConflict, match="--run_owner") as refused:
        await a.dht.read_run(RUN)
    assert first.owner in str(refused.value) and second.owner in str(refused.value)
    assert await a.dht.read_run(RUN, Trusted(wanted=second.owner)) == second
    assert await b.dht.read_run(RUN, Trusted(joined=first.owner)) == first
    with pytest.raises(RunConflict, match=f"expected {'Qm' + 'x' * 44}"):
        await a.dht.read_run(RUN, Trusted(wanted=PeerId("Qm" + "x" * 44)))


async def test_an_owner_that_has_signed_two_different_runs_is_not_believed(start: StartDht) -> None:
    a, b = await start(), await start()
    await a.dht.publish_run(own(a.identity, run_record()))
    await b.dht.publish_run(own(a.identity, run_record(sequence_number=5)))
    agreed = await b.dht.read_run(RUN)
    assert agreed is not None and agreed.record.sequence_number == 5
    await b.dht.publish_run(own(a.identity, run_record(seed=8)))
    with pytest.raises(RunConflict, match=a.identity.peer_id):
        await a.dht.read_run(RUN)


async def test_records_of_strangers_hide_no_data_peers_contributions(start: StartDht, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one data peer one record is looked at, whoever else publishes under its key."""
    monkeypatch.setattr("gwtf_p2p.live.discovery.dht.MOST_DATA_PEERS", 1)
    peers = [await start() for _ in range(3)]
    pages = {}
    for peer in peers:
        me = peer.identity.peer_id
        [pages[me]] = pages_of(me, RUN, (0, 7), Contributions({(Stage(1), me): Contribution(3)}), 1)
        await peer.dht.publish_contributions([pages[me]])
    for me, page in pages.items():
        assert await peers[0].dht.read_contributions(RUN, {me}) == [page]


async def test_the_clocks_of_other_peers_can_be_asked(start: StartDht) -> None:
    a, b = await start(None), await start()
    check = await check_clock(b.dht, [a.identity.peer_id, PeerId("12D3KooWRahQcr9Awj8Jih9zivoS3f7A3W8RUsmXvj7cJ1NmQ4cK")])
    assert check.verdict is ClockVerdict.GOOD and check.peers == 1


@pytest.mark.parametrize(
    ("offsets", "verdict"),
    [
        ([], ClockVerdict.UNKNOWN),
        ([1.9, -0.5, 900.0], ClockVerdict.GOOD),
        ([2.1, 5.0, 0.0], ClockVerdict.WARN),
        ([-29.9], ClockVerdict.WARN),
        ([-31.0, 0.0, -40.0], ClockVerdict.REFUSE),
    ],
)
def test_clock_offsets_are_judged_by_their_median(offsets: list[float], verdict: ClockVerdict) -> None:
    check = judge_offsets(offsets)
    assert check.verdict is verdict and check.peers == len(offsets)
    if verdict is ClockVerdict.REFUSE:
        assert "31.0 s ahead of" in check.reason


async def test_an_initial_peer_outside_any_dht_is_named(runtime_dir: Path, identities: list[Identity]) -> None:
    quiet = P2POptions(auto_nat=False, nat_port_map=False, check_identity=False)
    stranger = await start_daemon(quiet)
    initial = parse_initial_peers(await stranger.maddrs(), {})
    daemon = await start_daemon(replace(quiet, initial_peers=initial), identities[0])
    try:
        with pytest.raises(NetworkUnreachable, match="answers no DHT ping"):
            await start_dht(daemon, identities[0], DhtOptions(RUN))
    finally:
        await daemon.stop()
        await stranger.stop()


async def test_an_initial_peer_that_is_busy_for_a_moment_is_asked_again(
    runtime_dir: Path, identities: list[Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four pings it answers the last one: a machine that starts many processes is silent for longer than one ping waits."""
    monkeypatch.setattr("gwtf_p2p.live.discovery.dht._ANSWER_S", 0.3)
    quiet = P2POptions(auto_nat=False, nat_port_map=False, check_identity=False)
    busy = await start_daemon(quiet, identities[1])
    asked, never = 0, asyncio.Event()

    async def answer(request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        nonlocal asked
        asked += 1
        if asked < 4:
            await never.wait()
        me = dht_pb2.NodeInfo(node_id=dht_id_of(identities[1].peer_id).to_bytes())
        return dht_pb2.PingResponse(peer=me, dht_time=get_dht_time(), available=True)

    await busy.p2p.add_protobuf_handler("DHTProtocol.rpc_ping", answer, dht_pb2.PingRequest)
    initial = parse_initial_peers(await busy.maddrs(), {})
    daemon = await start_daemon(replace(quiet, initial_peers=initial), identities[0])
    try:
        dht = await start_dht(daemon, identities[0], DhtOptions(RUN))
        assert asked >= 4
        await dht.stop()
    finally:
        never.set()
        await daemon.stop()
        await busy.stop()


def test_owners_and_run_ids_are_checked(identities: list[Identity]) -> None:
    from gwtf_p2p.live.discovery.dht_validation import make_validator

    _, owner = make_validator(identities[0].key, RUN)
    assert peer_of_owner(owner) == identities[0].peer_id
    for bad in (b"", b"[owner:ssh-rsa AAAA]", "[owner:x]", None, owner + b"x"):
        with pytest.raises(RemoteProtocolError, match="owner"):
            peer_of_owner(bad)
    with pytest.raises(InputError, match="_hidden"):
        make_validator(identities[0].key, RunId("_hidden"))
    assert run_key(RUN) == "test-run.run" and stage_key(RUN, Stage(3)) == "test-run.stage.3"
