"""From rows to token ids: one document after another, in fragments of bounded size, with its beginning and its end.

- A document begins with the tokenizer's first token where the tokenizer means that (or the run says so), and ends with its
  end-of-text id, once: a document that brings its own is given no second one.
- Of chat messages the answers are learnt, and nothing else: every id has a mark, 1 for what is to be predicted.
- A row without a text in the column is left out, counted, and told at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.training.data.columns import as_messages, look_at
from gwtf_p2p.training.data.files import DataFile, Tell
from gwtf_p2p.training.data.order import DATASET
from gwtf_p2p.training.data.readers import Row, read_rows, read_text
from gwtf_p2p.training.data.tokenizer import TokenArray, Tokenizer

MaskArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a document. `mask` None: everything is learnt. `ends`: the last part, which holds the end-of-text id."""

    ids: TokenArray
    mask: MaskArray | None
    ends: bool


class Documents:
    """The documents of one dataset. Raises InputError that names the dataset, file or column, before anything is encoded."""

    def __init__(self, part: DatasetSpec, tokenizer: Tokenizer, tell: Tell) -> None:
        self.part, self.tokenizer, self.tell = part, tokenizer, tell
        self.files, self.column = look_at(part, tell)
        begins = tokenizer.adds_begin if part.bos is None else part.bos
        if begins and tokenizer.begin_id is None:
            raise InputError(DATASET, "bos", "expected false: this tokenizer has no token that begins a text")
        self.begin_id = tokenizer.begin_id if begins else None
        self._dtype = np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32

    @property
    def has_mask(self) -> bool:
        return self.column.kind == "messages"

    @property
    def fingerprint(self) -> str:
        """Names everything that the ids depend on."""
        part = self.part
        options = (self.column, part.special_tokens, part.encoding, self.begin_id, self.tokenizer.fingerprint)
        return repr((options, [(file.url, file.format, file.stamp) for file in self.files]))

    def of_file(self, file: DataFile) -> Iterator[Iterator[Fragment]]:
        """The documents of a file, each as its fragments; a document has to be read before the next one is asked for."""
        if file.format in ("text", "source"):
            yield self._of_text(read_text(file, self.part.encoding))
            return
        left_out = 0
        for row in read_rows(file, (self.column.name,), self.tell):
            document = self._of_row(file, row)
            if document is None:
                left_out += 1
            else:
                yield document
        if left_out:
            self.tell(f"{DATASET}: {file.url}: {left_out} rows have no {self.column.kind} in column {self.column.name!r}")

    def _of_row(self, file: DataFile, row: Row) -> Iterator[Fragment] | None:
        value = row.get(self.column.name)
        if self.column.kind == "text":
            return self._of_text([value]) if isinstance(value, str) and value else None
        if self.column.kind == "tokenized":
            return self._of_ids(file, value) if isinstance(value, list) and value else None
        messages = as_messages(value)
        return self._of_chat(messages) if messages is not None else None

    def _of_text(self, chunks: Iterable[str]) -> Iterator[Fragment]:
        """Empty texts give nothing, not even an end."""
        pieces = (self.tokenizer.encode(piece, self.part.special_tokens) for piece in self.tokenizer.pieces(chunks))
        last: TokenArray | None = None
        for ids in pieces:
            if not len(ids):
                continue
            if last is None:
                ids = self._begun(ids)
            else:
                yield Fragment(last, None, ends=False)
            last = ids
        if last is not None:
            yield Fragment(self._ended(last), None, ends=True)

    def _of_ids(self, file: DataFile, value: list[Any]) -> Iterator[Fragment]:
        if not all(type(i) is int and 0 <= i < self.tokenizer.vocabulary for i in value):
            wrong = next(i for i in value if type(i) is not int or not 0 <= i < self.tokenizer.vocabulary)
            expected = f"expected ids from 0 to {self.tokenizer.vocabulary - 1}, the tokenizer's, got {wrong!r:.20}"
            raise InputError(DATASET, f"{file.url}: {self.column.name}", expected)
        yield Fragment(self._ended(np.asarray(value, self._dtype)), None, ends=True)

    def _of_chat(self, messages: list[dict[str, Any]]) -> Iterator[Fragment]:
        ids, mask = self.tokenizer.chat(messages)
        ended = self._ended(ids)
        learnt = bool(mask[-1]) if len(mask) else False
        yield Fragment(ended, np.pad(mask, (0, len(ended) - len(mask)), constant_values=learnt), ends=True)

    def _begun(self, ids: TokenArray) -> TokenArray:
        if self.begin_id is None or ids[0] == self.begin_id:
            return ids
        return np.concatenate([np.array([self.begin_id], ids.dtype), ids])

    def _ended(self, ids: TokenArray) -> TokenArray:
        if len(ids) and ids[-1] == self.tokenizer.end_id:
            return ids
        return np.concatenate([ids, np.array([self.tokenizer.end_id], ids.dtype)])
