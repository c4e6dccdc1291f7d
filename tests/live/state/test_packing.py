"""States travel packed, bit by bit the same; what unpacks to another size than was declared is refused, and takes no memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gwtf_p2p.live.rpc.api import Header
from gwtf_p2p.live.state import manifest as state_manifest
from gwtf_p2p.live.state import transfer as state_transfer
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.live.state.packing import PLANES_ZSTD, packed, reads_packed, unpacked
from gwtf_p2p.live.state.transfer import CHUNK_KIND, StateDownload, StateUnavailable
from gwtf_p2p.protocol.errors import RemoteProtocolError
from tests.live.conftest import DEADLINE_S, StartPeer
from tests.live.state.test_state_transfer import FINE, STAGE, VERSION, Store, assert_equal, open_donor, state


def weights(values: int) -> memoryview:
    return memoryview(torch.randn(values, generator=torch.Generator().manual_seed(0)).numpy()).cast("B")


@given(st.binary(max_size=300), st.integers(0, 9), st.integers(0, 9))
def test_what_is_packed_is_unpacked(data: bytes, before: int, after: int) -> None:
    """Whole words or not, and of every length."""
    chunk = bytes(before) + data + bytes(64) + data[:after]
    small = packed(memoryview(chunk))
    assert small is None or bytes(unpacked(PLANES_ZSTD, memoryview(small), len(chunk))) == chunk


def test_floats_shrink_and_noise_goes_as_it_is() -> None:
    chunk = weights(CHUNK_BYTES // 4)
    small = packed(chunk)
    assert small is not None and len(small) < 0.86 * CHUNK_BYTES
    assert unpacked(PLANES_ZSTD, memoryview(small), CHUNK_BYTES) == chunk
    assert packed(memoryview(torch.randint(0, 256, (4096,), dtype=torch.uint8).numpy())) is None
    assert packed(memoryview(b"")) is None


def test_what_would_be_larger_than_declared_is_refused() -> None:
    """A bomb of a few bytes says its size, or hides it."""
    zeros = bytes(1 << 26)
    bomb, hidden = (zstandard.ZstdCompressor(write_content_size=says).compress(zeros) for says in (True, False))
    small = packed(weights(CHUNK_BYTES // 4))
    assert small is not None and len(bomb) < 10_000
    for way, data, size in (
        (PLANES_ZSTD, bomb, CHUNK_BYTES),
        (PLANES_ZSTD, hidden, CHUNK_BYTES),
        (PLANES_ZSTD, small, CHUNK_BYTES - 4),
        (PLANES_ZSTD, small[:-9], CHUNK_BYTES),
        (PLANES_ZSTD, b"", 4),
        (PLANES_ZSTD, b"garbage", 7),
        ("lzma", small, CHUNK_BYTES),
        (["x" * 10_000], small, CHUNK_BYTES),
    ):
        with pytest.raises(RemoteProtocolError, match=r"packed: .{1,200}$"):
            unpacked(way, memoryview(data), size)


@pytest.mark.parametrize("said", [None, "planes_zstd", 5, {}, ["lzma"], [*["x"] * 1000, PLANES_ZSTD]])
def test_whoever_does_not_say_that_it_reads_it_gets_it_unpacked(said: object) -> None:
    assert not reads_packed(said) and reads_packed(["lzma", PLANES_ZSTD])


@pytest.mark.live
async def test_a_download_is_packed_and_two_chunks_are_asked_for_at_a_time(start_peer: StartPeer) -> None:
    newcomer, giver = [await start_peer() for _ in range(2)]
    donor = open_donor(giver.rpc, Store(state()), STAGE)
    waiting, most, push = [0], [0], donor._push

    async def noted(*args: Any) -> None:
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        await push(*args)
        waiting[0] -= 1

    donor._push = noted  # type: ignore[method-assign]
    got = await StateDownload(newcomer.rpc).fetch(VERSION, [giver.id])
    assert_equal(got, state())
    whole = sum(tensor.nbytes for tensor in state().values())
    assert 0 < donor.bytes_served < 0.87 * whole
    assert most[0] == state_transfer.AT_ONCE


@pytest.mark.live
async def test_an_older_peer_gets_its_chunks_as_they_are(start_peer: StartPeer) -> None:
    older, giver = [await start_peer() for _ in range(2)]
    open_donor(giver.rpc, Store(state()), STAGE)
    for ask in ({}, {"chunk": 1}):
        while (answer := await older.rpc.call(giver.id, {"kind": "state", "version": VERSION, **ask}, DEADLINE_S)) == {
            "status": "preparing"
        }:
            pass
    assert answer == {"status": "coming"}
    kind, _, header, payload = await older.handlers.next()
    assert (kind, header) == ("delivery", {"kind": CHUNK_KIND, "version": VERSION, "chunk": 1})
    assert len(payload) == CHUNK_BYTES


@pytest.mark.live
async def test_a_donor_that_sends_a_bomb_is_left_out(start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The honest one gives all; alone, the other one gives nothing."""
    newcomer, liar, honest = [await start_peer() for _ in range(3)]
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    donor = open_donor(liar.rpc, Store(state()), STAGE, FINE)
    open_donor(honest.rpc, Store(state()), STAGE, FINE)

    async def bombs(to: Any, snapshot: state_manifest.Snapshot, chunk: int, may_pack: bool) -> None:
        header: Header = {"kind": CHUNK_KIND, "version": VERSION, "chunk": chunk, "packed": PLANES_ZSTD}
        await liar.rpc.push(to, header, bomb, DEADLINE_S)
        donor._pushes.clear()

    donor._push = bombs  # type: ignore[method-assign]
    download = StateDownload(newcomer.rpc)
    assert_equal(await download.fetch(VERSION, [liar.id, honest.id]), state())
    with pytest.raises(StateUnavailable, match="failed to deliver"):
        await download.fetch(VERSION, [liar.id])
