"""What is kept of microbatches: within its limit, and still there when a repair asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gwtf_p2p.live.compute import tensor_store
from gwtf_p2p.live.compute.tensor_store import MOST_SPILL_RETRY_S, MemoryLimit, TensorStore
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId

SIZE = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TensorStore]:
    store = TensorStore(MemoryLimit(3 * SIZE, tmp_path / "kept"))
    yield store
    store.close()
    assert not list((tmp_path / "kept").glob("*"))


def microbatch(index: int) -> MicrobatchId:
    return MicrobatchId(PeerId("data0"), 0, index)


def put(store: TensorStore, index: int, slot: Slot = Slot.INPUT) -> None:
    store.put(microbatch(index), slot, memoryview(bytes([index]) * SIZE))


def settle(store: TensorStore) -> None:
    """Wait until what is on its way to the disk is there."""
    if store._writer is not None:
        store._writer.submit(lambda: None).result()


def test_what_is_done_goes_to_the_disk_above_the_limit_and_comes_back(store: TensorStore) -> None:
    for index in range(6):
        put(store, index)
        store.done(microbatch(index))
    settle(store)
    assert (store.held_bytes, store.spilled_bytes) == (3 * SIZE, 3 * SIZE)
    for index in range(6):
        assert bytes(store.get(microbatch(index), Slot.INPUT)) == bytes([index]) * SIZE


def test_what_is_done_goes_first(store: TensorStore) -> None:
    for index in range(4):
        put(store, index)
        if index == 2:
            store.done(microbatch(index))
    settle(store)
    assert store.spilled_bytes == SIZE
    store.discard(microbatch(2))
    assert store.spilled_bytes == 0


def test_the_commit_frees_memory_and_disk(store: TensorStore) -> None:
    for index in range(6):
        put(store, index)
        store.done(microbatch(index))
    settle(store)
    for index in range(6):
        store.discard(microbatch(index))
    assert (store.held_bytes, store.spilled_bytes) == (0, 0)
    with pytest.raises(KeyError):
        store.get(microbatch(0), Slot.INPUT)


def test_a_tensor_that_comes_again_replaces_the_one_on_the_disk(store: TensorStore) -> None:
    for index in range(4):
        put(store, index)
        store.done(microbatch(index))
    settle(store)
    assert store.spilled_bytes == SIZE
    store.put(microbatch(0), Slot.INPUT, memoryview(b"new"))
    settle(store)
    assert bytes(store.get(microbatch(0), Slot.INPUT)) == b"new"


def test_without_a_limit_nothing_is_spilled() -> None:
    store = TensorStore()
    for index in range(9):
        put(store, index)
        store.done(microbatch(index))
    assert (store.held_bytes, store.most_held_bytes) == (9 * SIZE, 9 * SIZE)
    store.discard(microbatch(0))
    assert (store.held_bytes, store.most_held_bytes) == (8 * SIZE, 9 * SIZE)


def test_a_disk_that_refuses_keeps_nothing_half_and_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be spilled stays in memory, and is still there."""
    folder = tmp_path / "kept"
    folder.write_text("in the way of the folder")
    store = TensorStore(MemoryLimit(SIZE, folder))
    for index in range(4):
        put(store, index)
        settle(store)
    assert (store.held_bytes, store.spilled_bytes) == (4 * SIZE, 0)
    assert bytes(store.get(microbatch(0), Slot.INPUT)) == bytes(SIZE)
    folder.unlink()
    put(store, 4)
    settle(store)
    assert store.spilled_bytes == 0 and not folder.exists(), "not at once again"
    later = time.monotonic() + MOST_SPILL_RETRY_S
    monkeypatch.setattr(tensor_store, "time", SimpleNamespace(monotonic=lambda: later))
    put(store, 5)
    settle(store)
    assert store.held_bytes == SIZE and len(list(folder.iterdir())) == 5
    store.close()
