"""Training text as batches: a function of the run record, the iteration, the shard and the microbatch index, and nothing else.

So a data peer that returns after a crash, a single-process control and a test all get the same batch, whoever asked before.

Rules.
- Documents, each with its end-of-text id, follow each other in windows of `sequence_length` tokens; the label of a token is the
  token after it. With `packed = false` a window holds one document, or a piece of a longer one, and is padded at its end: a
  causal model then computes what it would on the document alone.
- Labels that are not learnt (padding, and all but the answers of a conversation) are -100, which torch's cross entropy leaves
  out. A window without a label is left out, so no microbatch is without one. Every microbatch counts alike in an iteration's
  gradient, however many of its labels are learnt.
- Where attention goes by documents (`attention = "document"` of the run), what follows an end of text is not learnt either: a
  window of several documents is learnt as each of them would be in a window of its own.
- Which windows a microbatch has is decided in `order`: one global order, dealt by iteration. **A shard is a number, 0 to
  shards - 1; which data peer holds which is not decided here**, and peer ids play no part.
- Ids are mapped from a file (`token_cache`), or come from a stream (`stream`).
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import Dataset, DatasetSpec, parts_of
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.documents import Documents, MaskArray
from gwtf_p2p.training.data.files import Tell
from gwtf_p2p.training.data.order import DATASET, Deal, Permutation, Shares
from gwtf_p2p.training.data.stream import Stream, Window
from gwtf_p2p.training.data.token_cache import Tokens, tokens_of
from gwtf_p2p.training.data.tokenizer import TokenArray, Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

NOT_LEARNT = -100
"""A label that torch's cross entropy leaves out."""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Sizes of a batch, from the run record. `data_peers_before`: pairs (iteration, data peers before it). `elastic_shares` as
    in the record. `held_out` is the share of windows that is not trained on. Behind an `end_token` (0 or more) nothing is
    learnt."""

    seed: int
    sequence_length: int
    microbatch_size: int
    microbatches_per_data_peer: int
    data_peers_before: tuple[tuple[int, int], ...] = ()
    held_out: float = 0.0
    end_token: int = -1
    elastic_shares: tuple[int, ...] = ()

    @classmethod
    def of(cls, run: RunRecord) -> BatchSpec:
        before = tuple((iteration, data_peers) for iteration, data_peers in run.data_peers_before)
        sizes = (run.sequence_length, run.microbatch_size, run.microbatches_per_data_peer)
        end_token = run.end_token if run.attention == "document" else -1
        return cls(run.seed, *sizes, before, run.evaluation.held_out, end_token, run.elastic_shares)


class DataSource(Protocol):
    """Anything that hands out batches."""

    def batch(self, iteration: int, index: int, shard: int, shards: int) -> tuple[Tensor, Tensor]:
        """tokens_BT and labels_BT, int64 on the CPU. Raises InputError: no such shard, or windows dealt otherwise before."""
        ...


def open_data(run: RunRecord) -> tuple[DataSource, Tokenizer]:
    """The data source and tokenizer of a run. Raises InputError that names the dataset or tokenizer."""
    tokenizer = load_tokenizer(run.tokenizer)
    return open_dataset(run.dataset, tokenizer, BatchSpec.of(run)), tokenizer


def open_dataset(dataset: Dataset, tokenizer: Tokenizer, spec: BatchSpec, tell: Tell = logger.warning) -> DataSource:
    """A dataset by its short form, or a mixture. `tell` hears every guess and what is left out. Raises InputError."""
    parts = parts_of(dataset)
    sources = [_open_part(part, (tokenizer, spec, str(number)), tell) for number, part in enumerate(parts)]
    return sources[0] if len(sources) == 1 else MixedSource(sources, [part.weight for part in parts], spec)


def _open_part(part: DatasetSpec, shared: tuple[Tokenizer, BatchSpec, str], tell: Tell) -> TextSource | StreamSource:
    tokenizer, spec, key = shared
    documents = Documents(part, tokenizer, tell)
    streaming = any(not file.is_local for file in documents.files) if part.streaming is None else part.streaming
    if streaming:
        return StreamSource(documents, spec, key)
    tokens = tokens_of(documents)
    layout = _layout(tokens, spec.sequence_length, packed=part.packed)
    return TextSource(tokens.ids, spec, part.path, (tokens.mask, layout, tokenizer.end_id), key)


class Source(ABC):
    """What all sources share: from the place of a microbatch to the ordinals of its windows, and from windows to tensors."""

    def __init__(self, spec: BatchSpec, padding: int = 0) -> None:
        self._spec, self._padding = spec, padding
        self._deal = Deal(spec.microbatches_per_data_peer, spec.data_peers_before, spec.elastic_shares)

    @abstractmethod
    def window(self, ordinal: int) -> Window:
        """The window of a place in the source's endless order."""

    def batch(self, iteration: int, index: int, shard: int, shards: int) -> tuple[Tensor, Tensor]:
        """See DataSource. Raises OSError when a stream breaks; asking again starts it anew."""
        first = self._deal.microbatch(iteration, index, shard, shards) * self._spec.microbatch_size
        windows = [self.window(ordinal) for ordinal in range(first, first + self._spec.microbatch_size)]
        return as_batch(windows, self._spec, self._padding)


class TextSource(Source):
    """All tokens in an array, usually mapped from a file; any batch at any time.

    `rest` is what is learnt of them (None: all), where the windows are (None: one behind the other), and the id that pads.
    """

    def __init__(
        self,
        tokens: TokenArray,
        spec: BatchSpec,
        name: str,
        rest: tuple[MaskArray | None, Layout | None, int] = (None, None, 0),
        key: str = "0",
    ) -> None:
        mask, layout, padding = rest
        super().__init__(spec, padding)
        self.tokens, self._mask, self._layout = tokens, mask, layout
        self._windows = (len(tokens) - 1) // spec.sequence_length if layout is None else len(layout.starts)
        if self._windows < 1:
            least = f"expected text for a window of {spec.sequence_length} tokens and one more"
            what = f"{least}, got {len(tokens)}" if layout is None else f"{least}, got none with anything to learn"
            raise InputError(DATASET, name, what)
        self.held = math.ceil(self._windows * spec.held_out)
        if self.held >= self._windows:
            raise InputError("evaluation", "held_out", f"expected a share that leaves something of the {self._windows} windows")
        self._lots = Permutation(f"{spec.seed}/{key}/held out", self._windows) if self.held else None
        self._windows -= self.held
        self._order = lru_cache(maxsize=2)(lambda epoch: Permutation(f"{spec.seed}/{key}/order/{epoch}", self._windows))

    def window(self, ordinal: int) -> Window:
        """See Source. Every epoch visits every window that is not held out once."""
        epoch, position = divmod(ordinal, self._windows)
        number = self._order(epoch)(position)
        return self._cut(number if self._lots is None else self._lots(self.held + number))

    def held_window(self, number: int) -> Window:
        """One of the `held` windows that nobody trains on."""
        assert self._lots is not None, "nothing is held out"
        return self._cut(self._lots(number % self.held))

    def _cut(self, number: int) -> Window:
        length = self._spec.sequence_length
        start = number * length if self._layout is None else int(self._layout.starts[number])
        end = start + (length + 1 if self._layout is None else int(self._layout.lengths[number]))
        return Window(self.tokens[start:end], None if self._mask is None else self._mask[start:end])


class StreamSource(Source):
    """Windows of a dataset that is read as training goes on."""

    def __init__(self, documents: Documents, spec: BatchSpec, key: str = "0") -> None:
        super().__init__(spec, documents.tokenizer.end_id)
        self._stream = Stream(documents, (spec.seed, key), spec.sequence_length)

    def window(self, ordinal: int) -> Window:
        """See Source. A microbatch comes out of one lane of the stream."""
        microbatch, row = divmod(ordinal, self._spec.microbatch_size)
        turn, lane = divmod(microbatch, self._stream.lanes)
        return self._stream.window(lane, turn * self._spec.microbatch_size + row)


class MixedSource(Source):
    """Windows of several datasets, by weight."""

    def __init__(self, sources: Sequence[TextSource | StreamSource], weights: Sequence[float], spec: BatchSpec) -> None:
        super().__init__(spec, sources[0]._padding)
        self._sources, self._shares = sources, Shares(spec.seed, weights)

    def window(self, ordinal: int) -> Window:
        """See Source."""
        number, own = self._shares.of(ordinal)
        return self._sources[number].window(own)

    @property
    def parts(self) -> Sequence[TextSource | StreamSource]:
        """The sources that are mixed."""
        return self._sources


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the windows of a dataset are, in tokens from its beginning; a length counts the token that is only a label."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def _layout(tokens: Tokens, length: int, *, packed: bool) -> Layout | None:
    """None: windows of equal length one behind the other, all of them learnt."""
    if packed and tokens.mask is None:
        return None
    if packed:
        starts = np.arange(0, max(len(tokens.ids) - 1, 0) // length * length, length, dtype=np.int64)
        lengths = np.full(len(starts), length + 1, np.int64)
    else:
        starts, lengths = _one_document_each(tokens.ends, length)
    if tokens.mask is not None and len(starts):
        learnt = _any_learnt(tokens.mask, starts + 1, starts + lengths)
        starts, lengths = starts[learnt], lengths[learnt]
    return Layout(starts, lengths)


def _one_document_each(ends: npt.NDArray[np.int64], length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Windows that begin anew with every document. A document of one token has nothing to predict."""
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    pieces = np.maximum(ends - begins - 1 + length - 1, 0) // length
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(begins, pieces) + (np.arange(len(first)) - first) * length
    return starts, np.minimum(np.repeat(ends, pieces) - starts, length + 1)


def _any_learnt(mask: MaskArray, starts: Any, ends: Any) -> npt.NDArray[np.bool_]:
    """Whether a range of the mask holds a 1, for many ranges, which do not overlap."""
    # reduceat takes the ranges between its indices; every second one is ours. It takes no index at the very end.
    indices = np.stack([starts, ends], axis=1).ravel()
    inside = indices[:-1] if indices[-1] == len(mask) else indices
    found: npt.NDArray[np.bool_] = np.logical_or.reduceat(mask, inside)[::2]
    return found


def as_batch(windows: Sequence[Window], spec: BatchSpec, padding: int) -> tuple[Tensor, Tensor]:
    """tokens_BT and labels_BT of as many windows."""
    length = spec.sequence_length
    tokens_BT = np.full((len(windows), length), padding, np.int64)
    labels_BT = np.full((len(windows), length), NOT_LEARNT, np.int64)
    for row, window in enumerate(windows):
        count = len(window.ids) - 1
        tokens_BT[row, :count] = window.ids[:-1]
        learnt = True if window.mask is None else window.mask[1:]
        if spec.end_token >= 0:
            learnt = np.logical_and(learnt, window.ids[:-1] != spec.end_token)  # the next document cannot be foretold
        labels_BT[row, :count] = np.where(learnt, window.ids[1:].astype(np.int64), NOT_LEARNT)
    return torch.from_numpy(tokens_BT), torch.from_numpy(labels_BT)
