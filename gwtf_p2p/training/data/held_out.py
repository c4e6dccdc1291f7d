"""What a run is evaluated on: the same microbatches every time, from the windows that are held out or from another dataset; and
what texts it goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import evaluated_on
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.batches import (
    BatchSpec,
    DataSource,
    MixedSource,
    TextSource,
    as_batch,
    open_dataset,
)
from gwtf_p2p.training.data.stream import Window
from gwtf_p2p.training.data.tokenizer import Tokenizer


def evaluation_batches(run: RunRecord, source: DataSource, tokenizer: Tokenizer) -> Sequence[tuple[Tensor, Tensor]]:
    """tokens_BT and labels_BT of every microbatch, no window twice unless there is less than one microbatch; none without an
    evaluation. `source` is what the run trains on. Raises InputError."""
    spec, rows = run.evaluation, run.microbatch_size
    if not spec.every:
        return ()
    if spec.dataset:
        parts = evaluated_on(spec.dataset, spec.split, run.dataset)
        alone = replace(BatchSpec.of(run), data_peers_before=(), elastic_shares=())
        sizes = replace(alone, microbatches_per_data_peer=spec.microbatches, held_out=0.0)
        other = open_dataset(parts, tokenizer, sizes)
        return [other.batch(0, index, 0, 1) for index in range(spec.microbatches)]
    windows = _held_windows(source, rows * spec.microbatches)
    count = max(len(windows) // rows, 1)
    padded = [windows[number % len(windows)] for number in range(count * rows)]
    groups = (padded[first : first + rows] for first in range(0, count * rows, rows))
    return [as_batch(group, BatchSpec.of(run), tokenizer.end_id) for group in groups]


def prompt_ids(run: RunRecord, tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Ids of a prompt, begun as the run's documents are. Raises InputError for one that leaves no room for a token."""
    ids = [int(i) for i in tokenizer.encode(prompt)]
    begin_id = tokenizer.begin_id if tokenizer.adds_begin else None
    begun = [begin_id, *ids] if begin_id is not None else ids
    begun = begun or [tokenizer.end_id]  # what stands before a document
    if len(begun) >= run.sequence_length:
        expected = f"expected at most {run.sequence_length - 1} tokens, since the run's windows have {run.sequence_length}"
        raise InputError("prompt", "", f"{expected}; {prompt!r:.40} has {len(begun)}")
    return tuple(begun)


def _held_windows(source: DataSource, most: int) -> list[Window]:
    """Of a mixture, of its parts in turn. Raises InputError for a stream, which holds nothing out."""
    parts = source.parts if isinstance(source, MixedSource) else [source]
    found: list[Window] = []
    texts: list[TextSource] = []
    for part in parts:
        if not isinstance(part, TextSource):
            expected = "expected evaluation.dataset: of a dataset that is streamed nothing is held out"
            raise InputError("evaluation", "held_out", expected)
        texts.append(part)
    for number in range(max(part.held for part in texts)):
        found += [part.held_window(number) for part in texts if number < part.held]
        if len(found) >= most:
            break
    return found[:most]
