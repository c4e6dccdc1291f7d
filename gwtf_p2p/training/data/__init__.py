"""What a run trains on: files found, a column chosen, documents encoded, windows dealt. Who holds a shard is not decided here.

Start with `batches.open_data(run)`. On the way from a name to a batch: `files` (which files), `readers` (rows), `columns`
(which column), `tokenizer` and `documents` (ids), `token_cache` (ids on disk) or `stream` (ids as they come), `order` (which
windows are whose), `batches` (tensors). torch is loaded only with `batches`: checking a dataset needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwtf_p2p.training.data.batches import BatchSpec, DataSource, TextSource, open_data, open_dataset

__all__ = ["BatchSpec", "DataSource", "TextSource", "open_data", "open_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gwtf_p2p.training.data import batches

    return getattr(batches, name)
