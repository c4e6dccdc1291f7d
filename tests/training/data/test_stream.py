"""A stream gives the windows that its text has, in any order, without loss, and from where it stood when it is asked anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.training.data import stream as stream_module
from gwtf_p2p.training.data.batches import BatchSpec, StreamSource, open_dataset
from gwtf_p2p.training.data.documents import Documents
from gwtf_p2p.training.data.files import DataFile
from gwtf_p2p.training.data.stream import BLOCK_WINDOWS, LANES, Place, Stream
from gwtf_p2p.training.data.token_cache import cache_folder
from gwtf_p2p.training.data.tokenizer import ByteTokenizer

SPEC = BatchSpec(seed=0, sequence_length=8, microbatch_size=2, microbatches_per_data_peer=3)


def write(folder: Path, files: int, rows: int, words: int = 6) -> DatasetSpec:
    """Every word is met once in an epoch: <file:row:word>, eight letters long."""
    folder.mkdir(exist_ok=True)
    for f in range(files):
        texts = ["".join(f"<{f:02}{r:03}{w}>" for w in range(words)) for r in range(rows)]
        (folder / f"part{f:03}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DatasetSpec(str(folder), streaming=True)


def source_of(part: DatasetSpec) -> StreamSource:
    source = open_dataset((part,), ByteTokenizer(), SPEC)
    assert isinstance(source, StreamSource)
    return source


@pytest.mark.parametrize(("files", "rows"), [(1, 30), (14, 5)])
def test_a_lane_packs_its_documents_without_loss_epoch_after_epoch(files: int, rows: int, tmp_path: Path) -> None:
    documents = Documents(write(tmp_path / "d", files, rows), ByteTokenizer(), [].append)
    stream, texts = Stream(documents, (0, "0"), 8), []
    for lane in range(LANES):
        ids: list[int] = []
        for window, place in stream._windows(lane, Place()):
            if place.epoch > 1:
                break
            ids += window.ids[:-1].tolist()
        text = bytes(b if b < 256 else 10 for b in ids).decode()
        words = Counter(text.replace("\n", "").replace("><", "> <").split())
        whole = {word for word, count in words.items() if len(word) == 8}
        assert all(words[word] <= 2 for word in whole)
        texts += sorted(word for word in whole if words[word] == 2)
    assert len(texts) == len(set(texts)), "a word belongs to one lane"
    missed = files * rows * 6 - len(texts)
    assert missed <= 2 * LANES, "nothing but what is cut where the second epoch ends"


def test_a_stream_gives_the_same_batches_in_any_order(tmp_path: Path) -> None:
    part = write(tmp_path / "d", 2, 40)
    ordered = source_of(part)
    wanted = {(i, k): ordered.batch(i, k, 0, 2)[0] for i in range(0, 900, 150) for k in range(3)}
    (next((cache_folder() / "streams").iterdir())).unlink()
    jumping = source_of(part)
    for iteration, index in [(750, 2), (0, 0), (450, 1), (300, 2), (450, 0), (750, 2)]:
        assert torch.equal(jumping.batch(iteration, index, 0, 2)[0], wanted[iteration, index])


def test_one_epoch_of_blocks_reads_every_window_once(tmp_path: Path) -> None:
    documents = Documents(write(tmp_path / "d", 3, 50), ByteTokenizer(), [].append)
    stream = Stream(documents, (0, "0"), 8)
    for lane in (0, 7):
        in_order = [w.ids.tolist() for w, _ in islice(stream._windows(lane, Place()), BLOCK_WINDOWS)]
        drawn = [stream.window(lane, position).ids.tolist() for position in range(BLOCK_WINDOWS)]
        assert sorted(drawn) == sorted(in_order) and drawn != in_order


def test_a_data_peer_that_returns_reads_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write(tmp_path / "d", 1, 60, words=9)
    first = source_of(part)
    for iteration in range(0, 1600, 100):
        first.batch(iteration, 0, 0, 1)
    wanted = first.batch(1600, 0, 0, 1)[0]
    started: list[Place] = []
    windows = Stream._windows

    def noted(self: Stream, lane: int, place: Place) -> Iterator[tuple[stream_module.Window, Place]]:
        started.append(place)
        return windows(self, lane, place)

    monkeypatch.setattr(Stream, "_windows", noted)
    assert torch.equal(source_of(part).batch(1600, 0, 0, 1)[0], wanted)
    assert len(started) == 1 and started[0].epoch > 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"0": {"1": [1, 2]}}', '{"0": {"1": [-1, 0, 0, 0]}}', '{"x": 1}'])
def test_places_that_are_damaged_are_done_without(text: str, tmp_path: Path) -> None:
    part = write(tmp_path / "d", 1, 30)
    wanted = source_of(part).batch(100, 0, 0, 1)[0]
    next((cache_folder() / "streams").iterdir()).write_text(text)
    assert torch.equal(source_of(part).batch(100, 0, 0, 1)[0], wanted)


@pytest.mark.parametrize("data_peers", [1, 2, 3, 4, 6])
def test_a_data_peer_reads_its_own_files_alone(data_peers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, opened = source_of(write(tmp_path / "d", 24, 3)), set()
    of_file = Documents.of_file
    monkeypatch.setattr(Documents, "of_file", lambda self, file: (opened.add(file.url), of_file(self, file))[1])
    for iteration in range(24):
        for index in range(3):
            source.batch(iteration, index, 0, data_peers)
    assert len(opened) == 24 // data_peers


def test_a_stream_that_breaks_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = write(tmp_path / "d", 1, 40)
    wanted = source_of(part).batch(4, 0, 0, 1)[0]
    (next((cache_folder() / "streams").iterdir())).unlink()
    failures, of_file = [True], Documents.of_file

    def broken(self: Documents, file: DataFile) -> Iterator[Iterator[stream_module.Fragment]]:
        for number, document in enumerate(of_file(self, file)):
            if number == 30 and failures:
                failures.pop()
                raise ConnectionError("the hub went away")
            yield document

    monkeypatch.setattr(Documents, "of_file", broken)
    source = source_of(part)
    with pytest.raises(ConnectionError):
        source.batch(4, 0, 0, 1)
    assert torch.equal(source.batch(4, 0, 0, 1)[0], wanted)


def test_a_stream_of_less_than_it_has_lanes_is_named(tmp_path: Path) -> None:
    part = write(tmp_path / "d", 1, LANES - 1)
    with pytest.raises(InputError, match=r"expected text in each of the 12 parts .* none in part 11; streaming = false"):
        for index in range(5):
            for iteration in range(4):
                source_of(part).batch(iteration, index % 3, 0, 1)


def test_documents_apart_are_streamed_as_they_are_cached(tmp_path: Path) -> None:
    write(tmp_path / "d", 1, 36, words=2)

    def windows(streaming: bool) -> set[tuple[int, ...]]:
        source = open_dataset((DatasetSpec(str(tmp_path / "d"), streaming=streaming, packed=False),), ByteTokenizer(), SPEC)
        rows = [source.batch(i, k, 0, 1) for i in range(128 if streaming else 12) for k in range(3)]
        return {tuple(np.concatenate([t, y]).tolist()) for tokens, labels in rows for t, y in zip(tokens, labels, strict=True)}

    assert windows(streaming=True) == windows(streaming=False)
