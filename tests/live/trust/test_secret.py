"""Nobody without its token gets past the greeting of a secret run, or can read its records; the token never travels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.discovery.run_trust import TokenNeeded
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.dialling import open_stream
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.run_secret import NONCE_BYTES, PROOF_BYTES, RunSecret
from gwtf_p2p.live.rpc.api import CallFailed
from gwtf_p2p.live.rpc.greeting import GREETING, MAGIC, Greeted, Purpose, protocol_name
from gwtf_p2p.live.rpc.rpc import Rpc, RpcOptions
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, RunRecord, encode
from gwtf_p2p.protocol.wire.signed import run_key
from tests.live.conftest import DEADLINE_S, RUN, LivePeer, Recorder, StartPeer
from tests.live.discovery.test_dht import stage_record
from tests.protocol.wire.golden import sample

pytestmark = pytest.mark.live

TOKEN, OTHER = RunSecret("sixteen characters of a token", RUN), RunSecret("another token, as long as that", RUN)


@pytest.fixture
async def with_secret(start_peer: StartPeer) -> AsyncIterator[Callable[..., object]]:
    """A peer whose data plane has this secret, or none."""
    started: list[Rpc] = []

    async def start(secret: RunSecret | None) -> LivePeer:
        peer = await start_peer()
        await peer.rpc.stop()
        rpc = Rpc(peer.daemon, RUN, RpcOptions(first_try_s=2.0), secret=secret)
        started.append(rpc)
        handlers = Recorder()
        await rpc.start(handlers)
        return LivePeer(peer.daemon, rpc, handlers)

    yield start
    for rpc in started:
        await rpc.stop()


async def test_peers_with_the_token_talk_and_nobody_else_gets_a_word_in(with_secret: Callable[..., object]) -> None:
    a, b, other, stranger = [await with_secret(secret) for secret in (TOKEN, TOKEN, OTHER, None)]  # type: ignore[misc]
    assert (await a.rpc.call(b.id, {"kind": "x"}, DEADLINE_S))["from"] == a.id
    await a.rpc.push(b.id, {"kind": "x"}, bytes(100_000), DEADLINE_S)
    assert (await b.handlers.next())[0] == "delivery"
    a.rpc.watch(b.id)
    for outsider in (other, stranger):
        with pytest.raises(CallFailed, match=r"token|secret"):
            await outsider.rpc.call(a.id, {"kind": "x"}, DEADLINE_S)
        with pytest.raises(CallFailed, match=r"token|secret"):
            await a.rpc.call(outsider.id, {"kind": "x"}, DEADLINE_S)
    assert a.handlers.heard.empty() and b.handlers.heard.empty()


async def test_a_stranger_that_opens_a_stream_is_told_a_number_and_a_proof_serves_once(
    with_secret: Callable[..., object],
) -> None:
    a, stranger = await with_secret(TOKEN), await with_secret(None)  # type: ignore[misc]
    numbers: set[bytes] = set()
    proof = b""
    for _ in range(2):
        reader, writer = await open_stream(stranger.daemon.control_path, a.id, protocol_name(RUN))
        writer.write(GREETING.pack(MAGIC, WIRE_VERSION, Purpose.TRANSFER))
        async with asyncio.timeout(DEADLINE_S):
            _, _, status = GREETING.unpack(await reader.readexactly(GREETING.size))
            assert status == Greeted.PROVE
            number = await reader.readexactly(NONCE_BYTES)
            numbers.add(number)
            # What a peer with the token would say for the first number, said again for the second.
            proof = proof or TOKEN.proof("opener", stranger.id, a.id, number + bytes(NONCE_BYTES), Purpose.TRANSFER)
            if len(numbers) > 1:
                writer.write(bytes(NONCE_BYTES) + proof)
                _, _, status = GREETING.unpack(await reader.readexactly(GREETING.size))
                assert status == Greeted.WRONG_TOKEN
        writer.transport.abort()
    assert len(numbers) == 2


def test_a_proof_is_of_one_side_two_peers_one_run_and_its_numbers() -> None:
    a, b, numbers = PeerId("a"), PeerId("b"), bytes(2 * NONCE_BYTES)
    proof = TOKEN.proof("opener", a, b, numbers, 1)
    assert len(proof) == PROOF_BYTES and TOKEN.is_proof(proof, "opener", a, b, numbers, 1)
    others = [("acceptor", a, b, numbers, 1), ("opener", b, a, numbers, 1), ("opener", a, b, numbers[::-1] + b"x", 1)]
    assert not any(TOKEN.is_proof(proof, *other) for other in [*others, ("opener", a, b, numbers, 2)])  # type: ignore[arg-type]
    assert not OTHER.is_proof(proof, "opener", a, b, numbers, 1)
    elsewhere = RunSecret("sixteen characters of a token", RunId("another run"))
    assert not elsewhere.is_proof(proof, "opener", a, b, numbers, 1)


def test_a_sealed_record_is_read_at_its_place_with_its_token_only() -> None:
    a = PeerId("a")
    sealed = TOKEN.seal(b"record", "key", a)
    assert b"record" not in sealed and sealed != TOKEN.seal(b"record", "key", a)
    assert TOKEN.unseal(sealed, "key", a) == b"record"
    assert TOKEN.unseal(sealed, "other", a) is TOKEN.unseal(sealed, "key", PeerId("b")) is None
    assert OTHER.unseal(sealed, "key", a) is TOKEN.unseal(b"record", "key", a) is TOKEN.unseal(sealed[:-1], "key", a) is None


async def test_records_of_a_secret_run_are_of_no_use_without_its_token(tmp_path: Path) -> None:
    peers = []
    for number, secret in enumerate((TOKEN, TOKEN, OTHER, None)):
        identity = create_identity(tmp_path / f"{number}.key")
        initial = await peers[0][0].maddrs() if peers else ()
        daemon = await start_daemon(P2POptions.on_this_machine(*initial), identity)
        peers.append((daemon, await start_dht(daemon, identity, DhtOptions(RUN, secret=secret)), identity))
    (_, a, owner), (_, b, _), (_, other, _), (_, stranger, outsider) = peers
    run = own(owner, replace(sample(RunRecord), run_id=RUN, admission="secret", members=()))
    record = stage_record(owner.peer_id)
    await a.publish_run(run)
    await a.publish_stage(record)
    assert await b.read_run(RUN) == run and await b.read_stages(RUN, [Stage(1)]) == [record]
    for without, why in ((stranger, "expected its token"), (other, "token is another one")):
        with pytest.raises(TokenNeeded, match=why) as refused:
            await without.read_run(RUN)
        assert refused.value.exit_code == 5
        assert await without.read_stages(RUN, [Stage(1)]) == []
    [notice] = await stranger.read_runs()
    assert (notice.model, notice.admission) == ("?", "secret")
    await stranger.publish_stage(stage_record(outsider.peer_id))
    await stranger.publish_run(own(outsider, replace(run.record, admission="open")))
    assert await b.read_stages(RUN, [Stage(1)]) == [record] and await b.read_run(RUN) == run
    stored = (await stranger._read([run_key(RUN)]))[run_key(RUN)]
    assert not any(encode(run.record)[:64] in value for value, _ in stored.values() if value.startswith(b"gwtf-sealed"))
    for daemon, dht, _ in peers:
        await dht.stop()
        await daemon.stop()
