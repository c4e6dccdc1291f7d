"""Training text as batches: a function of (seed, shard, number of shards, iteration, microbatch index) and nothing else.

So a data peer that returns after a crash, a single-process control and a test all get the same batch, whoever asked before.

Rules.
- The text is one row of token ids, documents joined by the tokenizer's end-of-text id, cut into windows of `sequence_length`
  tokens; the label of a token is the token after it.
- Window w belongs to shard w mod shards: shards are disjoint and cover everything. **A shard is a number, 0 to shards - 1;
  which data peer holds which is not decided here**, and peer ids play no part. One epoch of a shard visits each of its
  windows once, in an order drawn from (seed, shard, shards, epoch).
- `stdlib` is this Python's own library source without tests, site-packages and what depends on the machine: the same for
  everyone with the same build of Python. `text:GLOB` is local files in the order of their names. Any other name is a hub
  dataset, streamed: document d of its shuffled stream belongs to shard d mod shards, and windows come in the stream's order.
- Ids are held as uint16 or uint32 arrays (stdlib with bytes: about 26 MB).
"""

from __future__ import annotations

import glob
import hashlib
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.tokenizer import TokenArray, Tokenizer, load_tokenizer

STDLIB, TEXT_PREFIX, DATASET = "stdlib", "text:", "dataset"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_GENERATED = ("_sysconfigdata", "config-")  # written when that Python was built, with that machine's paths
_SHUFFLE_BUFFER_DOCUMENTS = 1000


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Sizes of a batch, from the run record."""

    seed: int
    sequence_length: int
    microbatch_size: int
    microbatches_per_data_peer: int

    @classmethod
    def of(cls, run: RunRecord) -> BatchSpec:
        return cls(run.seed, run.sequence_length, run.microbatch_size, run.microbatches_per_data_peer)

    def first_window(self, iteration: int, index: int) -> int:
        """Ordinal, in the shard's endless sequence of windows, of a microbatch's first row."""
        return (iteration * self.microbatches_per_data_peer + index) * self.microbatch_size


class DataSource(Protocol):
    """Anything that hands out batches."""

    def batch(self, iteration: int, index: int, shard: int, shards: int) -> tuple[Tensor, Tensor]:
        """tokens_BT and labels_BT, int64 on the CPU. Raises InputError if the shard has no text."""
        ...


def open_data(run: RunRecord) -> tuple[DataSource, Tokenizer]:
    """The data source and tokenizer of a run. Raises InputError that names the dataset or tokenizer."""
    tokenizer = load_tokenizer(run.tokenizer)
    return open_dataset(run.dataset, tokenizer, BatchSpec.of(run)), tokenizer


def open_dataset(name: str, tokenizer: Tokenizer, spec: BatchSpec) -> DataSource:
    """`stdlib`, `text:GLOB` or a hub dataset `OWNER/NAME[:CONFIG]`. Raises InputError."""
    if name == STDLIB:
        return TextSource(_read_files(_stdlib_files(), tokenizer, name), spec, name)
    if name.startswith(TEXT_PREFIX):
        return TextSource(_read_files(_glob_files(name), tokenizer, name), spec, name)
    return StreamSource(_hub_documents(name, spec.seed), tokenizer, spec, name)


class TextSource:
    """All tokens in memory; any batch at any time."""

    def __init__(self, tokens: TokenArray, spec: BatchSpec, name: str) -> None:
        self.tokens, self._spec, self._name = tokens, spec, name
        self._windows = (len(tokens) - 1) // spec.sequence_length
        self._orders: dict[tuple[int, int, int], np.ndarray[Any, Any]] = {}

    def batch(self, iteration: int, index: int, shard: int, shards: int) -> tuple[Tensor, Tensor]:
        """See DataSource."""
        _check_shard(shard, shards)
        count = len(range(shard, self._windows, shards))
        length = self._spec.sequence_length
        if count == 0:
            needed = shards * length + 1
            expected = f"expected {needed} tokens or more for {shards} shards, got {len(self.tokens)}"
            raise InputError(DATASET, self._name, expected)
        first = self._spec.first_window(iteration, index)
        rows = []
        for ordinal in range(first, first + self._spec.microbatch_size):
            epoch, position = divmod(ordinal, count)
            start = (shard + shards * int(self._order(shard, shards, epoch, count)[position])) * length
            rows.append(self.tokens[start : start + length + 1])
        return _as_batch(rows)

    def _order(self, shard: int, shards: int, epoch: int, count: int) -> np.ndarray[Any, Any]:
        key = (shard, shards, epoch)
        if key not in self._orders:
            if len(self._orders) >= 2 * shards:
                # Two epochs can meet in one iteration; more is not worth the memory.
                self._orders.clear()
            self._orders[key] = _generator(self._spec.seed, f"order/{shard}/{shards}/{epoch}").permutation(count)
        return self._orders[key]


Documents = Callable[[int, int, int], Iterator[str]]
"""(epoch, shard, shards) -> the documents of that shard in that epoch, in a fixed order."""


class StreamSource:
    """Windows packed from a stream of documents.

    Batches are meant to be asked for roughly in order. The last two iterations' windows are kept for repeats; an earlier
    one is had by streaming from the start again, and a later one (a resumed run) by streaming up to it.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, spec: BatchSpec, name: str) -> None:
        self._documents, self._tokenizer, self._spec, self._name = documents, tokenizer, spec, name
        self._readers: dict[tuple[int, int], _Reader] = {}

    def batch(self, iteration: int, index: int, shard: int, shards: int) -> tuple[Tensor, Tensor]:
        """See DataSource. Raises OSError when the stream breaks; asking again starts it anew."""
        _check_shard(shard, shards)
        first = self._spec.first_window(iteration, index)
        reader = self._readers.pop((shard, shards), None)
        if reader is None or first < reader.oldest:
            kept = 2 * self._spec.microbatches_per_data_peer * self._spec.microbatch_size
            reader = _Reader(self._windows(shard, shards), kept)
        rows = [reader.window(ordinal) for ordinal in range(first, first + self._spec.microbatch_size)]
        self._readers[(shard, shards)] = reader  # only now: a broken stream is not asked again
        return _as_batch(rows)

    def _windows(self, shard: int, shards: int) -> Iterator[TokenArray]:
        """Endless: epoch after epoch."""
        length, epoch, end = self._spec.sequence_length, 0, np.array([self._tokenizer.end_id])
        rest: TokenArray = self._tokenizer.encode("")
        while True:
            found = False
            for text in self._documents(epoch, shard, shards):
                row = np.concatenate([rest, self._tokenizer.encode(text), end.astype(rest.dtype)])
                found = found or len(text) > 0
                start = 0
                while start + length < len(row):
                    yield row[start : start + length + 1]
                    start += length
                rest = row[start:]
            if not found:
                raise InputError(DATASET, self._name, f"expected text for shard {shard} of {shards}, got none")
            epoch += 1


class _Reader:
    """One shard's windows by ordinal, the last `kept` of them at hand."""

    def __init__(self, windows: Iterator[TokenArray], kept: int) -> None:
        self._windows = windows
        self._recent: deque[TokenArray] = deque(maxlen=kept)
        self._read = 0

    @property
    def oldest(self) -> int:
        return self._read - len(self._recent)

    def window(self, ordinal: int) -> TokenArray:
        while self._read <= ordinal:
            self._recent.append(next(self._windows))
            self._read += 1
        return self._recent[ordinal - self.oldest]


def _check_shard(shard: int, shards: int) -> None:
    if not 0 <= shard < shards:
        raise InputError(DATASET, "shard", f"expected 0 to {shards - 1}, got {shard}")


def _as_batch(rows: Sequence[TokenArray]) -> tuple[Tensor, Tensor]:
    window_BT1 = torch.from_numpy(np.stack(rows).astype(np.int64))
    return window_BT1[:, :-1].contiguous(), window_BT1[:, 1:].contiguous()


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [root / name for name in names if not _LEFT_OUT.intersection(name.split("/")) and not name.startswith(_GENERATED)]


def _glob_files(name: str) -> list[Path]:
    pattern = Path(name.removeprefix(TEXT_PREFIX)).expanduser()
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(path for path in map(Path, found) if path.is_file())


def _read_files(paths: Sequence[Path], tokenizer: Tokenizer, name: str) -> TokenArray:
    """All documents, each followed by the end id. Raises InputError: no file, an unreadable one, no text in any."""
    if not paths:
        raise InputError(DATASET, name, "expected at least one file, found none")
    end = np.array([tokenizer.end_id])
    pieces: list[TokenArray] = []
    for path in paths:
        try:
            ids = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            raise InputError(DATASET, str(path), f"expected a readable file ({error.strerror})") from error
        if len(ids):
            pieces += [ids, end.astype(ids.dtype)]
    if not pieces:
        raise InputError(DATASET, name, f"expected text, got {len(paths)} empty files")
    return np.concatenate(pieces)


def _hub_documents(name: str, seed: int) -> Documents:
    """Stream a hub dataset's `train` split. Raises InputError if it can't be opened or has no text column."""
    from datasets import load_dataset  # type: ignore[import-untyped]

    path, _, config = name.partition(":")
    try:
        stream = load_dataset(path, config or None, split="train", streaming=True)
        column = _text_column(next(iter(stream), {}), name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        expected = f"expected {STDLIB}, {TEXT_PREFIX}GLOB or a hub dataset ({reason[0] if reason else type(error).__name__})"
        raise InputError(DATASET, name, expected) from error
    digest = hashlib.sha256(f"{seed}/documents".encode()).digest()
    shuffled = stream.shuffle(seed=int.from_bytes(digest[:4], "little"), buffer_size=_SHUFFLE_BUFFER_DOCUMENTS)

    def documents(epoch: int, shard: int, shards: int) -> Iterator[str]:
        shuffled.set_epoch(epoch)
        return (str(example[column]) for d, example in enumerate(shuffled) if d % shards == shard)

    return documents


def _text_column(example: Mapping[str, Any], name: str) -> str:
    candidates = [key for key in ("text", "content") if isinstance(example.get(key), str)]
    candidates += [key for key, value in example.items() if isinstance(value, str)]
    if not candidates:
        raise InputError(DATASET, name, f"expected a column of text, got the columns {sorted(example)}")
    return candidates[0]
