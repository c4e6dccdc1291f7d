"""Batches depend on run, iteration, shard and index alone; every window is read once; bad datasets are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import Dataset, DatasetSpec
from gwtf_p2p.training.data.batches import NOT_LEARNT, BatchSpec, DataSource, MixedSource, TextSource, open_data, open_dataset
from gwtf_p2p.training.data.token_cache import cache_folder
from gwtf_p2p.training.data.tokenizer import ByteTokenizer, load_tokenizer
from tests.training.data.tokenizers_for_tests import CHATML, beginning, byte_level
from tests.training.swarm import LLAMA, run_record

SPEC = BatchSpec(seed=0, sequence_length=8, microbatch_size=2, microbatches_per_data_peer=3)
END = ByteTokenizer.end_id


def numbered_text(windows: int = 30, spec: BatchSpec = SPEC) -> TextSource:
    """Token i is i: a row of a batch tells which window it came from."""
    return TextSource(np.arange(windows * spec.sequence_length + 1, dtype=np.uint16), spec, "numbers")


def windows_of(source: DataSource, shard: int, shards: int, iterations: range) -> list[int]:
    """Window numbers of all rows of a shard, in order."""
    batches = [source.batch(i, k, shard, shards)[0] for i in iterations for k in range(SPEC.microbatches_per_data_peer)]
    return [int(row[0]) // SPEC.sequence_length for tokens_BT in batches for row in tokens_BT]


def read(source: DataSource, iterations: int, shards: int = 1) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of every row, in order."""
    rows = []
    for iteration in range(iterations):
        for index in range(SPEC.microbatches_per_data_peer):
            for shard in range(shards):
                tokens_BT, labels_BT = source.batch(iteration, index, shard, shards)
                rows += list(zip(tokens_BT.tolist(), labels_BT.tolist(), strict=True))
    return rows


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labels_are_the_next_tokens() -> None:
    tokens_BT, labels_BT = numbered_text().batch(1, 2, 0, 2)
    assert tokens_BT.shape == labels_BT.shape == (2, 8)
    assert tokens_BT.dtype == labels_BT.dtype == torch.int64
    assert torch.equal(labels_BT, tokens_BT + 1)


def test_a_batch_is_the_same_whoever_asked_before() -> None:
    expected = numbered_text().batch(7, 1, 1, 2)
    asked_before = numbered_text()
    for iteration in range(20):
        asked_before.batch(iteration, 0, 0, 2)
        asked_before.batch(iteration, 2, 1, 2)
    for got, wanted in zip(asked_before.batch(7, 1, 1, 2), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("shares", [(2, 4), (4, 2), (3, 3), (2, 3, 4)])
def test_elastic_shares_deal_each_iteration_the_windows_of_equal_ones(shares: tuple[int, ...]) -> None:
    def dealt(each: tuple[int, ...], iteration: int) -> list[int]:
        source = numbered_text(60, replace(SPEC, elastic_shares=each))
        given = each or (SPEC.microbatches_per_data_peer,) * len(shares)
        places = [(k, shard) for shard, share in enumerate(given) for k in range(share)]
        rows = [row for k, shard in sorted(places) for row in source.batch(iteration, k, shard, len(shares))[0]]
        return [int(row[0]) // SPEC.sequence_length for row in rows]

    for iteration in range(4):
        assert dealt(shares, iteration) == dealt((), iteration)  # the very order, dealt in turns


def test_a_microbatch_beyond_the_share_is_refused() -> None:
    with pytest.raises(InputError, match="elastic_shares: expected a microbatch below 2, got 2"):
        numbered_text(60, replace(SPEC, elastic_shares=(2, 4))).batch(0, 2, 0, 2)


def test_seed_shard_iteration_and_index_each_change_the_batch() -> None:
    source = numbered_text()
    other_seed = TextSource(np.arange(241, dtype=np.uint16), BatchSpec(1, 8, 2, 3), "numbers")
    batches = [
        source.batch(0, 0, 0, 2)[0],
        source.batch(0, 1, 0, 2)[0],
        source.batch(1, 0, 0, 2)[0],
        source.batch(0, 0, 1, 2)[0],
        other_seed.batch(0, 0, 0, 2)[0],
    ]
    assert len({tuple(map(tuple, tokens_BT.tolist())) for tokens_BT in batches}) == len(batches)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_one_epoch_of_all_shards_visits_every_window_once(shards: int) -> None:
    source = numbered_text(windows=36)
    iterations = range(36 // shards // (SPEC.microbatches_per_data_peer * SPEC.microbatch_size))
    visited = [window for shard in range(shards) for window in windows_of(source, shard, shards, iterations)]
    assert sorted(visited) == list(range(36))
    assert visited != sorted(visited)


def test_the_number_of_data_peers_changes_within_an_epoch_and_every_window_is_read_once() -> None:
    """Also by a data peer that was not there before, when the run record says what there was."""
    changing = (1, 1, 3, 2, 2, 1)
    source, visited = numbered_text(windows=sum(changing) * 6), []
    newcomer = numbered_text(sum(changing) * 6, BatchSpec(0, 8, 2, 3, ((2, 1), (3, 3), (5, 2))))
    for iteration, shards in enumerate(changing):
        for shard in range(shards):
            found = windows_of(source, shard, shards, range(iteration, iteration + 1))
            assert found == windows_of(newcomer, shard, shards, range(iteration, iteration + 1))
            visited += found
    assert sorted(visited) == list(range(sum(changing) * 6))


def test_epochs_visit_in_different_orders() -> None:
    source = numbered_text(windows=12)
    first, second = windows_of(source, 0, 1, range(2)), windows_of(source, 0, 1, range(2, 4))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_too_little_text_is_named() -> None:
    with pytest.raises(InputError, match="dataset: numbers: expected text for a window of 8 tokens and one more, got 8"):
        TextSource(np.arange(8, dtype=np.uint16), SPEC, "numbers")
    with pytest.raises(InputError, match="shard: expected 0 to 1, got 2"):
        numbered_text().batch(0, 0, 2, 2)


def test_the_default_dataset_is_this_pythons_own_source() -> None:
    source, tokenizer = open_data(run_record(LLAMA))
    tokens_BT, _ = source.batch(0, 0, 0, 2)
    again, _ = open_data(run_record(LLAMA))
    assert torch.equal(again.batch(0, 0, 0, 2)[0], tokens_BT)
    assert int(tokens_BT.max()) < tokenizer.vocabulary == 257
    assert isinstance(source, TextSource)
    assert isinstance(source.tokens, np.memmap) and source.tokens.dtype == np.uint16
    assert len(source.tokens) > 5_000_000
    text = tokenizer.decode(source.tokens)
    assert "def __init__(self" in text
    assert "build_time_vars = {" not in text  # the file with the paths of the machine that built this Python
    assert not list(cache_folder().rglob("tokens.bin")), "bytes cost nothing to make again"


def test_documents_follow_each_other_with_the_end_between_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "second"}])
    source = open_dataset(path, ByteTokenizer(), SPEC)
    assert isinstance(source, TextSource)
    assert source.tokens.tolist() == [*b"first", END, *b"second", END]


def test_documents_apart_are_what_each_is_alone(tmp_path: Path) -> None:
    texts = ["ab", "a longer one than eight", "x", "exactly8"]
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    source = open_dataset((DatasetSpec(path, packed=False),), ByteTokenizer(), SPEC)
    rows = read(source, 1)  # three microbatches of two: the six windows there are
    found = set()
    for tokens, labels in rows:
        learnt = [label for label in labels if label != NOT_LEARNT]
        assert labels == learnt + [NOT_LEARNT] * (8 - len(learnt))
        assert tokens[1 : len(learnt)] == learnt[:-1]
        assert set(tokens[len(learnt) :]) <= {END}
        found.add((bytes(tokens[: len(learnt)]).decode(), learnt[-1] == END))
    assert found == {("ab", True), ("a longer", False), (" one tha", False), ("n eight", True), ("x", True), ("exactly8", True)}


def test_a_document_begins_where_the_tokenizer_means_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(beginning(tmp_path / "begins")))
    path = jsonl(tmp_path / "a.jsonl", [{"text": "the river"}, {"text": "the bridge"}])

    def ids(bos: bool | None) -> list[int]:
        source = open_dataset((DatasetSpec(path, bos=bos),), tokenizer, BatchSpec(0, 2, 1, 1))
        assert isinstance(source, TextSource)
        return list(source.tokens.tolist())

    one, other = tokenizer.encode("the river").tolist(), tokenizer.encode("the bridge").tolist()
    begin, end = tokenizer.begin_id, tokenizer.end_id
    assert ids(None) == ids(True) == [begin, *one, end, begin, *other, end]
    assert ids(False) == [*one, end, *other, end]
    with pytest.raises(InputError, match="bos: expected false: this tokenizer has no token that begins a text"):
        open_dataset((DatasetSpec(path, bos=True),), ByteTokenizer(), SPEC)


def test_a_document_that_brings_its_end_is_given_no_second_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path / "t")))
    ids = tokenizer.encode("seen").tolist()
    path = jsonl(tmp_path / "a.jsonl", [{"ids": [*ids, tokenizer.end_id]}, {"ids": ids}])
    source = open_dataset((DatasetSpec(path, tokenized="ids"),), tokenizer, BatchSpec(0, 2, 1, 1))
    assert isinstance(source, TextSource)
    assert source.tokens.tolist() == [*ids, tokenizer.end_id] * 2
    jsonl(tmp_path / "a.jsonl", [{"ids": [1, tokenizer.vocabulary]}])
    with pytest.raises(InputError, match=f"ids: expected ids from 0 to {tokenizer.vocabulary - 1}, the tokenizer's, got"):
        open_dataset((DatasetSpec(path, tokenized="ids"),), tokenizer, SPEC)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_of_conversations_the_answers_are_learnt_and_no_window_is_without_one(
    packed: bool, streaming: bool, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path / "t", chat_template=CHATML, eos_token="<|im_end|>")))
    long = "under the old bridge, " * 5
    talks = [[{"role": "user", "content": long}, {"role": "assistant", "content": f"seen {n}"}] for n in range(30)]
    others = [[{"from": "human", "value": "where"}, {"from": "gpt", "value": "by the river"}]] * 10
    path = jsonl(tmp_path / "a.jsonl", [{"id": "x", "talk": talk} for talk in (*talks, *others)])
    part = DatasetSpec(path, messages="talk", packed=packed, streaming=streaming)
    rows = read(open_dataset((part,), tokenizer, SPEC), 20)
    answers = set()
    for tokens, labels in rows:
        learnt = [label for label in labels if label != NOT_LEARNT]
        assert learnt
        assert all(label in (NOT_LEARNT, following) for label, following in zip(labels[:-1], tokens[1:], strict=True))
        answers |= set(tokenizer.decode(np.array(learnt, np.uint16)).replace("<|im_end|>", "|").replace("\n", "").split("|"))
    text = " ".join(answers)
    assert "see" in text and "by the" in text and "bridge" not in text and "where" not in text


def test_conversations_without_an_answer_are_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path / "t", chat_template=CHATML)))
    path = jsonl(tmp_path / "a.jsonl", [{"talk": [{"role": "user", "content": "under the old bridge, by the river"}]}] * 9)
    with pytest.raises(InputError, match=r"a.jsonl: expected text .* got none with anything to learn"):
        open_dataset((DatasetSpec(path, messages="talk"),), tokenizer, SPEC)
    with pytest.raises(InputError, match="tokenizer: byte: expected one with a chat template"):
        open_dataset((DatasetSpec(path, messages="talk"),), ByteTokenizer(), SPEC)


def test_a_mixture_reads_its_datasets_by_weight(tmp_path: Path) -> None:
    paths = [jsonl(tmp_path / f"{c}.jsonl", [{"text": c * 9000}]) for c in "ab"]
    parts: Dataset = (DatasetSpec(paths[0], weight=3), DatasetSpec(paths[1], streaming=False))
    source = open_dataset(parts, ByteTokenizer(), SPEC)
    assert isinstance(source, MixedSource)
    rows = read(source, 100)
    share = sum(ord("a") in tokens for tokens, _ in rows) / len(rows)
    assert 0.7 < share < 0.8
    again = open_dataset(parts, ByteTokenizer(), SPEC)
    assert torch.equal(again.batch(60, 1, 0, 1)[0], source.batch(60, 1, 0, 1)[0])


def test_what_was_encoded_is_taken_from_the_cache_until_the_file_changes(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path / "t")))
    path = tmp_path / "a.jsonl"
    jsonl(path, [{"text": "the river runs under the old bridge" * 3}])
    first = open_dataset(str(path), tokenizer, SPEC)
    kept = list(cache_folder().rglob("tokens.bin"))
    assert len(kept) == 1
    with kept[0].open("r+b") as file:
        file.write(np.array([7], np.uint16).tobytes())
    again = open_dataset(str(path), tokenizer, SPEC)
    assert isinstance(again, TextSource) and isinstance(first, TextSource)
    assert isinstance(again.tokens, np.memmap)
    assert again.tokens[0] == 7, "it was read, not made anew"
    jsonl(path, [{"text": "another river runs under the old bridge" * 3}])
    changed = open_dataset(str(path), tokenizer, SPEC)
    assert isinstance(changed, TextSource)
    assert tokenizer.decode(np.asarray(changed.tokens)).startswith("another river")
    assert not list(cache_folder().rglob(".*")), "nothing unfinished stays"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(str(byte_level(tmp_path / "t")))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GWTF_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file: expected room for the encoded dataset .* GWTF_CACHE"):
        open_dataset(jsonl(tmp_path / "a.jsonl", [{"text": "seen"}]), tokenizer, SPEC)


def test_empty_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="expected text, got 1 files without any"):
        open_dataset(f"text:{tmp_path}/*.txt", ByteTokenizer(), SPEC)
