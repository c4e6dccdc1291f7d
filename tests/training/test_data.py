"""Batches depend on seed, shard, iteration and index alone; shards are disjoint; bad datasets are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.batches import BatchSpec, StreamSource, TextSource, open_data, open_dataset
from gwtf_p2p.training.data.tokenizer import ByteTokenizer, load_tokenizer
from tests.training.swarm import LLAMA, run_record

SPEC = BatchSpec(seed=0, sequence_length=8, microbatch_size=2, microbatches_per_data_peer=3)


def numbered_text(windows: int = 30) -> TextSource:
    """Token i is i: a row of a batch tells which window it came from."""
    return TextSource(np.arange(windows * SPEC.sequence_length + 1, dtype=np.uint16), SPEC, "numbers")


def windows_of(source: TextSource, shard: int, shards: int, iterations: range) -> list[int]:
    """Window numbers of all rows of a shard, in order."""
    batches = [source.batch(i, k, shard, shards)[0] for i in iterations for k in range(SPEC.microbatches_per_data_peer)]
    return [int(row[0]) // SPEC.sequence_length for tokens_BT in batches for row in tokens_BT]


def test_labels_are_the_next_tokens() -> None:
    tokens_BT, labels_BT = numbered_text().batch(1, 2, 0, 2)
    assert tokens_BT.shape == labels_BT.shape == (2, 8)
    assert tokens_BT.dtype == labels_BT.dtype == torch.int64
    assert torch.equal(labels_BT, tokens_BT + 1)


def test_a_batch_is_the_same_whoever_asked_before() -> None:
    expected = numbered_text().batch(7, 1, 1, 2)
    asked_before = numbered_text()
    for iteration in range(20):
        asked_before.batch(iteration, 0, 0, 3)
        asked_before.batch(iteration, 0, 0, 2)
    for got, wanted in zip(asked_before.batch(7, 1, 1, 2), expected, strict=True):
        assert torch.equal(got, wanted)


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


def test_epochs_visit_in_different_orders() -> None:
    source = numbered_text(windows=12)
    first, second = windows_of(source, 0, 1, range(2)), windows_of(source, 0, 1, range(2, 4))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_shard_without_text_is_named() -> None:
    with pytest.raises(InputError, match="dataset: numbers: expected 33 tokens or more for 4 shards, got 25"):
        numbered_text(windows=3).batch(0, 0, 3, 4)
    with pytest.raises(InputError, match="shard: expected 0 to 1, got 2"):
        numbered_text().batch(0, 0, 2, 2)


def test_the_default_dataset_is_this_pythons_own_source() -> None:
    source, tokenizer = open_data(run_record(LLAMA))
    tokens_BT, _ = source.batch(0, 0, 0, 2)
    again, _ = open_data(run_record(LLAMA))
    assert torch.equal(again.batch(0, 0, 0, 2)[0], tokens_BT)
    assert int(tokens_BT.max()) < tokenizer.vocabulary == 257
    # Held as two bytes per token: Python's own ints would take twenty times that.
    assert isinstance(source, TextSource)
    assert source.tokens.dtype == np.uint16
    assert len(source.tokens) > 5_000_000
    text = tokenizer.decode(source.tokens)
    assert "def __init__(self" in text
    assert "build_time_vars = {" not in text  # the file with the paths of the machine that built this Python


def test_files_are_read_in_the_order_of_their_names_and_end_with_the_end_id(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "c.md").write_text("not matched")
    source = open_dataset(f"text:{tmp_path}/*.txt", ByteTokenizer(), SPEC)
    assert isinstance(source, TextSource)
    assert source.tokens.tolist() == [*b"first", 256, *b"second", 256]


def test_bad_datasets_are_one_line_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    for name, message in [
        (f"text:{tmp_path}/*.nothing", r"\*\.nothing: expected at least one file, found none"),
        (f"text:{tmp_path}/folder", "folder: expected at least one file, found none"),
        (f"text:{tmp_path}/empty.txt", "expected text, got 1 empty files"),
    ]:
        with pytest.raises(InputError, match=f"^dataset: .*{message}") as caught:
            open_dataset(name, ByteTokenizer(), SPEC)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that even root cannot read")
def test_an_unreadable_file_is_named() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem: expected a readable file \("):
        open_dataset("text:/proc/self/mem", ByteTokenizer(), SPEC)


def streamed(documents: int = 40) -> StreamSource:
    def texts(epoch: int, shard: int, shards: int) -> Iterator[str]:
        return (f"<{epoch}:{d}>" * 3 for d in range(documents) if d % shards == shard)

    return StreamSource(texts, ByteTokenizer(), SPEC, "stream")


def test_a_stream_gives_the_same_batches_in_any_order() -> None:
    ordered = streamed()
    in_order = {(i, k): ordered.batch(i, k, 0, 2)[0] for i in range(6) for k in range(3)}
    jumping = streamed()
    for iteration, index in [(5, 2), (0, 0), (3, 1), (2, 2), (3, 0), (5, 2)]:
        assert torch.equal(jumping.batch(iteration, index, 0, 2)[0], in_order[iteration, index])


def test_a_stream_packs_documents_without_loss_and_starts_over() -> None:
    source, text = streamed(documents=4), ""
    for iteration in range(3):
        for index in range(SPEC.microbatches_per_data_peer):
            for row in source.batch(iteration, index, 1, 2)[0]:
                text += ByteTokenizer().decode(row.numpy().astype(np.uint16))
    expected = "".join(f"<{epoch}:{d}>" * 3 for epoch in range(6) for d in (1, 3))
    assert expected.startswith(text)
    assert "<1:1>" in text


def test_shards_of_a_stream_are_disjoint_documents() -> None:
    source = streamed()
    seen = [set(), set()]
    for shard in (0, 1):
        for row in source.batch(0, 0, shard, 2)[0]:
            seen[shard] |= set(ByteTokenizer().decode(row.numpy().astype(np.uint16)).replace("><", ">|<").split("|"))
    assert seen[0] and seen[1] and not {d for d in seen[0] & seen[1] if d.startswith("<") and d.endswith(">")}


def test_a_stream_that_breaks_is_started_again() -> None:
    failures = [True]

    def texts(epoch: int, shard: int, shards: int) -> Iterator[str]:
        for d in range(40):
            if d == 10 and failures:
                failures.pop()
                raise ConnectionError("the hub went away")
            yield f"<{epoch}:{d}>" * 3

    source, whole = StreamSource(texts, ByteTokenizer(), SPEC, "stream"), streamed()
    with pytest.raises(ConnectionError):
        source.batch(4, 0, 0, 1)
    assert torch.equal(source.batch(4, 0, 0, 1)[0], whole.batch(4, 0, 0, 1)[0])


def test_a_stream_without_text_is_named() -> None:
    source = StreamSource(lambda epoch, shard, shards: iter([""]), ByteTokenizer(), SPEC, "nothing")
    with pytest.raises(InputError, match="nothing: expected text for shard 0 of 1, got none"):
        source.batch(0, 0, 0, 1)


def test_datasets_are_streamed_from_wherever_the_hub_library_finds_them(tmp_path: Path) -> None:
    """A local folder takes the same path through the library as a hub name, without a network."""
    (tmp_path / "lines.txt").write_text("\n".join(f"line number {i}" for i in range(200)))
    source = open_dataset(str(tmp_path), ByteTokenizer(), SPEC)
    assert isinstance(source, StreamSource)
    tokens_BT, _ = source.batch(0, 0, 0, 2)
    assert "line number" in ByteTokenizer().decode(tokens_BT.flatten().numpy().astype(np.uint16)).replace("\n", "")
    assert torch.equal(open_dataset(str(tmp_path), ByteTokenizer(), SPEC).batch(0, 0, 0, 2)[0], tokens_BT)
    with pytest.raises(InputError, match="nowhere: expected stdlib, text:GLOB or a hub dataset"):
        open_dataset(str(tmp_path / "nowhere"), ByteTokenizer(), SPEC)


@pytest.mark.parametrize("text", ["plain", "añ ☃ 𝄞", "", "a\x00b\r\n\t<0x41>"])
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_the_saved_byte_tokenizer_loads_in_transformers_with_the_same_ids(tmp_path: Path) -> None:
    ByteTokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.vocabulary, loaded.end_id) == (257, 256)
    text = "def f(x):\n\treturn 'añ ☃'"
    assert loaded.encode(text).tolist() == ByteTokenizer().encode(text).tolist()
    assert loaded.decode(loaded.encode(text)) == text


def test_a_large_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(70_000)} | {"<end>": 70_000}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>").save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.vocabulary, loaded.end_id) == (70_001, 70_000)
    assert loaded.encode("w3 w69999 w65536").tolist() == [3, 69_999, 65_536]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("w69999 w1")
    source = open_dataset(f"text:{tmp_path}/text/*.txt", loaded, SPEC)
    assert isinstance(source, TextSource)
    assert source.tokens.tolist() == [69_999, 1, 70_000]


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel({"w": 0}, unk_token="w"))
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected one with an end-of-text token"):
        load_tokenizer(str(tmp_path))


def test_an_unknown_tokenizer_is_named() -> None:
    with pytest.raises(InputError, match="tokenizer: /no/such: expected 'byte' or a hub name") as caught:
        load_tokenizer("/no/such")
    assert "\n" not in str(caught.value)
