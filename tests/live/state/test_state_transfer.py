"""State downloads: complete and bit-equal, or a named reason; a donor may die or lie in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.rpc.api import DataPlane
from gwtf_p2p.live.state import donor as state_donor
from gwtf_p2p.live.state import manifest as state_manifest
from gwtf_p2p.live.state import transfer as state_transfer
from gwtf_p2p.live.state.donor import StateDonor
from gwtf_p2p.live.state.manifest import Manifest
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.live.state.transfer import CHUNK_KIND, StateDownload, StateRefused, StateUnavailable
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.trust.state_access import StateAccess, WhyNoState
from gwtf_p2p.protocol.wire.records import PeerState
from gwtf_p2p.training.state import tensors as state_tensors
from tests.live.conftest import DEADLINE_S, StartPeer
from tests.protocol.peers import D, in_step, record

pytestmark = pytest.mark.live

VERSION = 7


def state(seed: int = 0) -> dict[str, Tensor]:
    """About four chunks."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"weights/{i}": torch.randn((257, 500 + i), generator=generator) for i in range(8)}
    return {**tensors, "step": torch.tensor(VERSION, dtype=torch.int64)}


STAGE, OTHER_STAGE = Stage(1), Stage(2)


class Store:
    """Holds one state of its own stage, and perhaps a replica of another stage's."""

    def __init__(self, tensors: dict[str, Tensor], version: int = VERSION, replica: dict[str, Tensor] | None = None) -> None:
        self.states = {(STAGE, version): tensors, **({(OTHER_STAGE, version): replica} if replica else {})}

    async def state_of(self, stage: Stage, version: int) -> Reading | None:
        found = self.states.get((stage, version))
        return None if found is None else Reading(version, found)

    async def kept_of(self, stage: Stage) -> tuple[int, tuple[int, ...]]:
        return 3, tuple(version for of, version in self.states if of == stage)


def assert_equal(got: Mapping[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == tensor.dtype


FINE = 1 << 16
"""Bytes of a chunk, for states that are to have many."""


def open_donor(rpc: DataPlane, store: Store, stage: Stage, chunk_bytes: int = CHUNK_BYTES) -> StateDonor:
    """One that gives to whoever asks."""
    donor = StateDonor(rpc, store, stage)
    donor.chunk_bytes = chunk_bytes
    donor.may_have = lambda peer, stage, now: (None, True)
    return donor


async def test_several_donors_serve_one_state(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer, *donors = [await start_peer() for _ in range(3)]
    serving = [open_donor(peer.rpc, Store(state()), STAGE, FINE) for peer in donors]
    got = await StateDownload(newcomer.rpc).fetch(VERSION, [peer.id for peer in donors])
    assert_equal(got, state())
    assert all(donor.bytes_served > 0 for donor in serving)


async def test_a_donor_dies_in_the_middle(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer, dying, steady = [await start_peer() for _ in range(3)]
    open_donor(steady.rpc, Store(state()), STAGE, FINE)
    donor = open_donor(dying.rpc, Store(state()), STAGE, FINE)
    download = StateDownload(newcomer.rpc)
    arrive, arrived = download.on_delivery, []

    def count_and_kill(sender: str, header: dict[str, object], payload: memoryview) -> None:
        arrive(sender, header, payload)  # type: ignore[arg-type]
        arrived.append(sender)
        if arrived.count(dying.id) == 3:
            donor.stop()
            dying.daemon.p2p._child.kill()

    monkeypatch.setattr(download, "on_delivery", count_and_kill)
    assert_equal(await download.fetch(VERSION, [dying.id, steady.id]), state())
    assert 3 <= arrived.count(dying.id) < 3 + state_transfer.AT_ONCE, "the fault must have happened in the middle"


def state_with_moments() -> dict[str, Tensor]:
    """As an optimizer with two moments of each weight keeps it: in the order of names the weights come last."""
    weights = {name.removeprefix("weights/"): tensor for name, tensor in state().items() if name != "step"}
    kinds = ("first_moment", "second_moment")
    moments = {f"{kind}/{name}": torch.rand(weight.shape) for kind in kinds for name, weight in weights.items()}
    return {**moments, **state()}


async def test_the_weights_come_first_and_a_donor_may_die_while_they_are_put_to_use(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer, dying, steady = [await start_peer() for _ in range(3)]
    whole = state_with_moments()
    open_donor(steady.rpc, Store(whole), STAGE, FINE)
    donor = open_donor(dying.rpc, Store(whole), STAGE, FINE)
    download, chunks = StateDownload(newcomer.rpc), []
    download.on_chunk = lambda arrived, of: chunks.append((arrived, of))
    handed: list[tuple[int, int]] = []

    async def take(weights: Mapping[str, Tensor]) -> None:
        handed.append(chunks[-1])
        assert_equal(weights, {name: tensor for name, tensor in whole.items() if state_tensors.is_of_weights(name)})
        donor.stop()
        dying.daemon.p2p._child.kill()

    assert_equal(await download.fetch(VERSION, [dying.id, steady.id], on_weights=take), whole)
    [(arrived, of)] = handed
    assert of / 3 <= arrived <= of / 3 + 2 + 4 * state_transfer.AT_ONCE, "the others were hardly begun"


async def test_moments_that_are_not_the_ones_that_were_promised_are_not_believed(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are right."""
    newcomer, liar = [await start_peer() for _ in range(2)]
    whole = state_with_moments()
    donor = open_donor(liar.rpc, Store(whole), STAGE, FINE)
    download, chunk, handed = StateDownload(newcomer.rpc), state_manifest.Snapshot.chunk, []

    def damaged(self: state_manifest.Snapshot, index: int) -> memoryview:
        honest = bytearray(chunk(self, index))
        honest[0] ^= index not in self.manifest.chunks_of(state_tensors.is_of_weights)
        return memoryview(honest)

    async def take(weights: Mapping[str, Tensor]) -> None:
        handed.append(sorted(weights))

    await download._manifest(liar.id, {"version": VERSION})
    monkeypatch.setattr(state_manifest.Snapshot, "chunk", damaged)
    with pytest.raises(StateUnavailable, match="failed to deliver"):
        await download.fetch(VERSION, [liar.id], on_weights=take)
    assert handed == [sorted(state())]
    donor.stop()


async def test_weights_that_cannot_be_put_to_use_fail_the_download(start_peer: StartPeer) -> None:
    newcomer, peer = [await start_peer() for _ in range(2)]
    open_donor(peer.rpc, Store(state_with_moments()), STAGE)

    async def refuse(weights: Mapping[str, Tensor]) -> None:
        raise RemoteProtocolError("they do not fit")

    with pytest.raises(RemoteProtocolError, match="they do not fit"):
        await StateDownload(newcomer.rpc).fetch(VERSION, [peer.id], on_weights=refuse)


async def test_a_donor_with_another_state_is_left_out(start_peer: StartPeer) -> None:
    newcomer, *donors = [await start_peer() for _ in range(4)]
    serving = [open_donor(peer.rpc, Store(state(seed)), STAGE) for peer, seed in zip(donors, (0, 1, 0), strict=True)]
    assert_equal(await StateDownload(newcomer.rpc).fetch(VERSION, [peer.id for peer in donors]), state(0))
    assert serving[1].bytes_served == 0


async def test_a_replica_of_another_stage_is_served(start_peer: StartPeer) -> None:
    newcomer, donor = [await start_peer() for _ in range(2)]
    open_donor(donor.rpc, Store(state(), replica=state(5)), STAGE)
    download = StateDownload(newcomer.rpc)
    assert await download.listed(donor.id, OTHER_STAGE) == (3, (VERSION,))
    assert await download.listed(donor.id, Stage(0)) == (3, ())
    assert_equal(await download.fetch(VERSION, [donor.id], OTHER_STAGE), state(5))
    assert_equal(await download.fetch(VERSION, [donor.id]), state())


async def test_a_copy_made_since_others_have_asked_is_told(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_donor, "LISTED_FOR_S", 0.4)
    newcomer, donor = [await start_peer() for _ in range(2)]
    store = Store(state())
    open_donor(donor.rpc, store, STAGE)
    download = StateDownload(newcomer.rpc)
    assert await download.listed(donor.id, OTHER_STAGE) == (3, ())
    store.states[OTHER_STAGE, VERSION] = state(5)
    await asyncio.sleep(0.5)  # the list is old now
    assert await download.listed(donor.id, OTHER_STAGE) == (3, (VERSION,))


async def test_a_donor_that_prepares_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASK_DEADLINE_S", "PREPARE_DEADLINE_S"):
        monkeypatch.setattr(state_transfer, name, 0.1)
    monkeypatch.setattr(state_transfer, "PREPARE_RETRY_S", 0.01)

    async def preparing(*args: Any, **how: Any) -> dict[str, str]:
        return {"status": "preparing"}

    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None, call=preparing)
    download = StateDownload(rpc)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(RemoteProtocolError, match=r"still preparing after 0\.1 s"):
            await download.listed(PeerId("donor"), STAGE)
        with pytest.raises(StateUnavailable, match="still preparing"):
            await download.fetch(VERSION, [PeerId("donor")])


async def test_a_list_made_since_one_has_asked_is_told_however_slow_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its round trip is longer than a list may be old."""
    monkeypatch.setattr(state_donor, "LISTED_FOR_S", -1.0)
    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None)
    donor, near, ask = open_donor(rpc, Store(state()), STAGE), PeerId("near"), {"kind": "state_list"}
    assert donor.on_message(near, ask) == {"status": "preparing"}
    await asyncio.gather(*donor._tasks)
    assert donor.on_message(near, ask) == {"status": "ready", "epoch": 3, "versions": [VERSION]}
    donor._lists = {stage: (at - 0.001, epoch, found) for stage, (at, epoch, found) in donor._lists.items()}  # a moment passes
    assert donor.on_message(near, ask) == {"status": "preparing"}, "that answered what it had asked before"
    for n in range(2 * state_donor.MOST_WAITING):
        assert donor.on_message(PeerId(f"stranger {n}"), ask) == {"status": "preparing"}
    assert len(donor._waiting) == state_donor.MOST_WAITING and len(donor._tasks) <= 1
    donor.stop()


async def test_a_silent_donor_holds_nothing_up(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has promised a chunk that never comes: another donor gives it, long before the deadline."""
    monkeypatch.setattr(state_transfer, "CHUNK_PRIOR_S", 3600.0)
    newcomer, silent, steady = [await start_peer() for _ in range(3)]
    open_donor(steady.rpc, Store(state()), STAGE)
    donor = open_donor(silent.rpc, Store(state()), STAGE)
    monkeypatch.setattr(donor, "_push", lambda *args: asyncio.sleep(3600.0))
    async with asyncio.timeout(DEADLINE_S):
        assert_equal(await StateDownload(newcomer.rpc).fetch(VERSION, [silent.id, steady.id]), state())
    donor.stop()


async def test_a_damaged_chunk_is_not_believed(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer, liar = [await start_peer() for _ in range(2)]
    donor = open_donor(liar.rpc, Store(state()), STAGE)
    chunk = state_manifest.Snapshot.chunk

    def damaged(self: state_manifest.Snapshot, index: int) -> memoryview:
        honest = bytearray(chunk(self, index))
        honest[0] ^= 1
        return memoryview(honest)

    download = StateDownload(newcomer.rpc)
    await download._manifest(liar.id, {"version": VERSION})  # the snapshot is taken and hashed while the donor is honest
    monkeypatch.setattr(state_manifest.Snapshot, "chunk", damaged)
    with pytest.raises(StateUnavailable, match="failed to deliver"):
        await download.fetch(VERSION, [liar.id])
    donor.stop()


async def test_a_chunk_that_is_fetched_twice_at_once_comes_twice(start_peer: StartPeer) -> None:
    """For two downloads, or for copies of two stages. The second one was taken for the first, whose peer ended."""
    newcomer, other = [await start_peer() for _ in range(2)]
    donor, download = open_donor(other.rpc, Store(state()), STAGE), StateDownload(newcomer.rpc)
    what = {"version": VERSION}
    manifest = await download._manifest(other.id, what)
    assert isinstance(manifest, Manifest)
    fetched = await asyncio.gather(*(download.chunk(other.id, manifest, what, 0) for _ in range(3)))
    assert len({bytes(chunk) for chunk, _ in fetched}) == 1 and not download._expected and not download._turns
    donor.stop()


def test_what_one_donor_has_failed_to_bring_is_not_asked_twice_of_another_one() -> None:
    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None)
    near, far, scratch = PeerId("near"), PeerId("far"), SimpleNamespace()
    parts: Any = (Manifest(VERSION, (), ("first", "second")), scratch)
    chunks = state_transfer._Chunks(StateDownload(rpc), parts, {}, 0.0, frozenset())
    assert [chunks._next(near), chunks._next(far), chunks._next(near)] == [0, 1, None]
    chunks._under_way = {0: {near, far}, 1: {far}}
    chunks._missing.append(0)  # far has failed with it
    chunks._under_way[0].discard(far)
    assert chunks._next(near) == 1, "it helps with what is late, and does not bring twice what it is bringing"
    assert chunks._next(far) == 0


async def test_nobody_has_that_version(start_peer: StartPeer) -> None:
    newcomer, donor = [await start_peer() for _ in range(2)]
    open_donor(donor.rpc, Store(state(), VERSION + 1), STAGE)
    with pytest.raises(StateUnavailable, match="not what this peer has"):
        await StateDownload(newcomer.rpc).fetch(VERSION, [donor.id])
    with pytest.raises(StateUnavailable, match="no donors"):
        await StateDownload.__new__(StateDownload).fetch(VERSION, [])


async def test_what_strangers_ask_a_donor_for_is_bounded() -> None:
    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None)
    donor, stranger = open_donor(rpc, Store(state()), STAGE), PeerId("stranger")
    for wrong in ({"version": -1}, {"version": 1 << 70}, {"version": 1, "stage": -1}, {"version": 1, "stage": 1 << 20}):
        with pytest.raises(RemoteProtocolError, match="expected a whole number from 0 to"):
            donor.on_message(stranger, {"kind": "state", **wrong})
    for version in range(10, 10 + 3 * state_donor.MOST_PREPARING):
        assert donor.on_message(stranger, {"kind": "state", "version": version})["status"] == "preparing"
    assert len(donor._preparing) == state_donor.MOST_PREPARING
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):  # an honest peer asks again, and gets its turn
        while donor.on_message(stranger, {"kind": "state", "version": VERSION})["status"] != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0)
    donor.stop()


async def test_a_chunk_that_nobody_asked_for_is_refused(start_peer: StartPeer) -> None:
    newcomer, stranger = [await start_peer() for _ in range(2)]
    StateDownload(newcomer.rpc)
    header = {"kind": CHUNK_KIND, "version": VERSION, "chunk": 0}
    result = await stranger.rpc.push(newcomer.id, header, b"x" * 100, 10.0)
    assert not result.accepted


async def test_an_outsider_is_refused_in_a_word_that_says_why_and_a_newcomer_whose_record_comes_late_is_not(
    start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The donor reads the records once more for whoever it has not seen; what they show then, counts."""
    monkeypatch.setattr(state_transfer, "RECORD_PATIENCE_S", 0.0)
    donor, member, newcomer, outsider = [await start_peer() for _ in range(4)]
    driven = in_step()
    mine, theirs = record(driven.me, stage=1), record(member.id, PeerState.ONLINE, stage=2)
    driven.sees([D, mine, theirs])
    access, serving = StateAccess(driven.machine.gate), StateDonor(donor.rpc, Store(state()), STAGE)
    with pytest.raises(StateUnavailable, match="gives nothing yet"):
        await StateDownload(member.rpc).fetch(VERSION, [donor.id])
    serving.may_have = access.asked
    read = asyncio.Event()
    serving.on_unseen = read.set

    async def read_records() -> None:
        while True:
            await read.wait()
            read.clear()
            began_at = asyncio.get_running_loop().time()
            driven.sees([D, mine, theirs, record(newcomer.id, PeerState.JOINING, stage=1)])
            access.read(began_at)

    reading = asyncio.create_task(read_records())
    for kind in ("ask", "list"):
        with pytest.raises((StateUnavailable, StateRefused)) as refused:
            download = StateDownload.__new__(StateDownload)
            download._rpc = outsider.rpc
            await (download.fetch(VERSION, [donor.id]) if kind == "ask" else download.listed(donor.id, STAGE))
        [why] = refused.value.refused if isinstance(refused.value, StateUnavailable) else [refused.value]
        assert isinstance(why, StateRefused) and why.why is WhyNoState.NO_RECORD and "no record" in str(refused.value)
    assert serving.bytes_served == 0
    answer = await outsider.rpc.call(donor.id, {"kind": "state", "version": VERSION, "chunk": 0}, DEADLINE_S)
    assert answer["status"] == "preparing", "a chunk is no way around"
    member.rpc._services.clear()
    for peer in (member, newcomer):
        assert_equal(await StateDownload(peer.rpc).fetch(VERSION, [donor.id]), state())
    reading.cancel()
    serving.stop()


async def test_one_peer_has_few_chunks_on_their_way() -> None:
    """Else whoever asks for one a thousand times keeps all others waiting."""
    rpc: Any = SimpleNamespace(add_service=lambda kind, service: None, push=lambda *args: asyncio.sleep(3600.0))
    donor, greedy = open_donor(rpc, Store(state()), STAGE), PeerId("greedy")
    async with asyncio.timeout(DEADLINE_S):
        while donor.on_message(greedy, {"kind": "state", "version": VERSION})["status"] != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0)
    ask = {"kind": "state", "version": VERSION, "chunk": 0}
    said = [donor.on_message(greedy, ask)["status"] for _ in range(100)]
    assert said == ["coming"] * state_donor.MOST_PUSHES + ["preparing"] * (100 - state_donor.MOST_PUSHES)
    assert donor.on_message(PeerId("other"), ask)["status"] == "coming"
    donor.stop()
