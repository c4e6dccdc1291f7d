"""What a run trains on, as its record says it: one dataset, or a mixture of several with weights.

The short form is a text: `stdlib`, `text:GLOB`, a local file or folder, or a hub dataset `OWNER/NAME[:CONFIG]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Gt, Le, MaxLen, MinLen

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.ranges import PLAIN_NAME

STDLIB, TEXT_PREFIX = "stdlib", "text:"
MOST_PARTS = 32


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One dataset of a run.

    At most one of `text_column`, `messages` and `tokenized` is given; without any, the text column is the one named `text` or
    `content`, or the only one with text, and where that leaves a choice the dataset is refused with its columns listed.
    """

    path: Annotated[str, MinLen(1), MaxLen(1024), PLAIN_NAME, "stdlib, text:GLOB, a local file or folder, or a hub dataset"] = (
        STDLIB
    )
    name: Annotated[str, MaxLen(256), PLAIN_NAME, "configuration of the dataset, where it has several"] = ""
    split: Annotated[str, MinLen(1), MaxLen(64), PLAIN_NAME, "split of the dataset"] = "train"
    data_files: Annotated[tuple[str, ...], MaxLen(64), "patterns of files inside `path`, instead of all"] = ()
    text_column: Annotated[str, MaxLen(256), PLAIN_NAME, "column of text"] = ""
    messages: Annotated[str, MaxLen(256), PLAIN_NAME, "column of chat messages; the answers alone are learnt"] = ""
    tokenized: Annotated[str, MaxLen(256), PLAIN_NAME, "column of token ids of the run's tokenizer"] = ""
    streaming: Annotated[bool | None, "read as training goes on, without a copy (default: hub datasets only)"] = None
    weight: Annotated[float, Gt(0), Le(1e6), "share of this dataset's windows in a mixture, relative to the others"] = 1.0
    packed: Annotated[bool, "documents follow each other in a window; false: one document a window, padded"] = True
    bos: Annotated[bool | None, "begin every document with the tokenizer's first token (default: as the tokenizer does)"] = None
    special_tokens: Annotated[bool, "names of special tokens in the text mean these tokens, instead of being text"] = False
    encoding: Annotated[str, MinLen(1), MaxLen(32), PLAIN_NAME, "encoding of text files"] = "utf-8"

    @property
    def is_plain_text(self) -> bool:
        """Whether this is files of text, each one document, which have no columns."""
        return self.path == STDLIB or self.path.startswith(TEXT_PREFIX)

    def validate(self, where: str, field: str) -> None:
        """Raises InputError: settings that do not go together."""
        chosen = [name for name in ("text_column", "messages", "tokenized") if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(where, f"{field}.{chosen[1]}", f"expected it alone, got {' and '.join(chosen)}")
        outside = next((pattern for pattern in self.data_files if not _is_inside(pattern)), None)
        if outside is not None:
            expected = f"expected patterns of files inside {self.path}, without .. and not from the root, got {outside!r:.80}"
            raise InputError(where, f"{field}.data_files", expected)
        if self.is_plain_text and (chosen or self.name or self.data_files):
            wrong = next(name for name in (*chosen, "name", "data_files") if getattr(self, name))
            raise InputError(where, f"{field}.{wrong}", f"expected nothing: {self.path} is files of text")
        if self.is_plain_text and self.streaming and self.path == STDLIB:
            raise InputError(where, f"{field}.streaming", "expected false: stdlib is small")


def _is_inside(pattern: str) -> bool:
    parts = pattern.replace("\\", "/").split("/")
    return parts[0] not in ("", "~") and ".." not in parts and ":" not in parts[0] and not pattern.startswith("~")


Dataset = str | tuple[DatasetSpec, ...]


def parts_of(dataset: Dataset) -> tuple[DatasetSpec, ...]:
    """The datasets of a run; the short form `OWNER/NAME:CONFIG` is taken apart."""
    if not isinstance(dataset, str):
        return dataset
    name, colon, config = dataset.partition(":")
    if dataset.startswith(TEXT_PREFIX) or not colon or "/" in config or name.startswith((".", "/", "~")):
        return (DatasetSpec(path=dataset),)
    return (DatasetSpec(path=name, name=config),)


def evaluated_on(dataset: str, split: str, trained_on: Dataset) -> tuple[DatasetSpec, ...]:
    """The datasets of an evaluation by their short form, read in the way of the first that is trained on; none without."""
    if not dataset:
        return ()
    first = parts_of(trained_on)[0]
    found = []
    for part in parts_of(dataset):
        part = replace(part, split=split, streaming=False, packed=first.packed, bos=first.bos)
        if not part.is_plain_text and not first.is_plain_text:
            part = replace(part, text_column=first.text_column, messages=first.messages, tokenized=first.tokenized)
        found.append(part)
    return tuple(found)


def check_dataset(dataset: Dataset, where: str, field: str = "dataset") -> None:
    """Checks what the ranges of single fields do not say. Raises InputError."""
    parts = parts_of(dataset)
    if not 1 <= len(parts) <= MOST_PARTS:
        raise InputError(where, field, f"expected 1 to {MOST_PARTS} datasets, got {len(parts)}")
    for number, part in enumerate(parts):
        part.validate(where, field if len(parts) == 1 else f"{field}[{number}]")
