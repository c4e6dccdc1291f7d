"""Which column is trained on: the one that the run names, or the one that its name or its being alone makes certain.

Never a column by its position. What is not certain is refused, with the columns listed and how to name one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.training.data.files import DataFile, Tell, find_files
from gwtf_p2p.training.data.order import DATASET
from gwtf_p2p.training.data.readers import TEXT, Row, read_rows

LOOKED_AT_ROWS = 32
USUAL_NAMES = ("text", "content")
_KINDS = {"text_column": "text", "messages": "chat messages", "tokenized": "token ids"}


@dataclass(frozen=True, slots=True)
class Column:
    """The column that is read, and what its values are: `text`, `messages` or `tokenized`."""

    name: str
    kind: str


def choose_column(part: DatasetSpec, files: Sequence[DataFile], tell: Tell) -> Column:
    """By the first rows of the first file that has any. Raises InputError: no rows, no such column, or none that is certain."""
    kinds = column_kinds(_first_rows(files, tell))
    if not kinds:
        raise InputError(DATASET, part.path, f"expected rows with columns, found none in {len(files)} files")
    for setting, expected in _KINDS.items():
        name = getattr(part, setting)
        if name and kinds.get(name) != expected:
            raise InputError(DATASET, setting, f"expected a column of {expected}, got {name!r}; {_listed(part.path, kinds)}")
        if name:
            return Column(name, "text" if setting == "text_column" else setting)
    texts = [name for name, kind in kinds.items() if kind == "text"]
    usual = [name for name in USUAL_NAMES if name in texts]
    if len(usual) == 1 or len(texts) == 1:
        chosen = usual[0] if len(usual) == 1 else texts[0]
        others = [name for name in kinds if name != chosen]
        if others:
            tell(f"{DATASET}: {part.path}: text is taken from column {chosen!r}; not read: {', '.join(others)}")
        return Column(chosen, "text")
    how = f'name one: dataset = {{ path = "{part.path}", text_column = "..." }}'
    if not texts and "chat messages" in kinds.values():
        how = how.replace("text_column", "messages")
    elif not texts and "token ids" in kinds.values():
        how = how.replace("text_column", "tokenized")
    raise InputError(DATASET, part.path, f"which column is the text is not certain; {_listed('', kinds)}; {how}")


def look_at(part: DatasetSpec, tell: Tell) -> tuple[tuple[DataFile, ...], Column]:
    """The files of a dataset and the column that is read of them; text without columns counts as one. Raises InputError."""
    files = find_files(part, tell)
    if any(file.format not in ("text", "source") for file in files):
        return files, choose_column(part, files, tell)
    if part.text_column or part.messages or part.tokenized:
        raise InputError(DATASET, part.path, "files of text have no columns; expected none to be named")
    return files, Column(TEXT, "text")


def column_kinds(rows: Sequence[Row]) -> dict[str, str]:
    """What the values of each column are: text, chat messages, token ids, or something else. Empty values say nothing."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _kind([row[name] for row in rows if row.get(name) is not None]) for name in names}


def is_messages(value: Any) -> bool:
    """Whether this is a conversation: a list of maps with a role and a content, under one of the two usual pairs of names."""
    return isinstance(value, list) and bool(value) and all(_message(item) is not None for item in value)


def as_messages(value: Any) -> list[dict[str, Any]] | None:
    """The conversation with the names that chat templates expect; None for what is no conversation."""
    if not isinstance(value, list) or not value:
        return None
    found = [_message(item) for item in value]
    return None if None in found else [item for item in found if item is not None]


_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def _message(item: Any) -> dict[str, Any] | None:
    if not isinstance(item, Mapping):
        return None
    if isinstance(item.get("role"), str) and "content" in item:
        return {name: value for name, value in item.items() if value is not None}
    if isinstance(item.get("from"), str) and isinstance(item.get("value"), str):
        return {"role": _ROLES.get(item["from"], item["from"]), "content": item["value"]}
    return None


def _first_rows(files: Sequence[DataFile], tell: Tell) -> list[Row]:
    for file in files:
        rows = list(itertools.islice(read_rows(file, None, tell, batch_rows=LOOKED_AT_ROWS), LOOKED_AT_ROWS))
        if rows:
            return rows
    return []


def _kind(values: Sequence[Any]) -> str:
    if values and all(isinstance(value, str) for value in values):
        return "text"
    if values and all(is_messages(value) for value in values):
        return "chat messages"
    if values and all(isinstance(value, list) and all(type(i) is int for i in value) for value in values):
        return "token ids"
    return "other"


def _listed(path: str, kinds: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({kind})" if kind != "other" else name for name, kind in kinds.items())
    return f"{path}{' ' if path else ''}has the columns {listed}"
