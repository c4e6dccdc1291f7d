"""Text to token ids: bytes by default, or any Hugging Face tokenizer by its hub name or folder.

The byte tokenizer needs no download and no training: ids 0-255 are the bytes of UTF-8, 256 ends a document. A model that uses
it needs `vocab_size` >= 257.

A vocabulary is as large as its largest id plus one, whatever the number of its entries: ids may have gaps. The name of a
special token inside a text is text, unless it is asked for otherwise: a document cannot end itself.

A long text is encoded in pieces of 16 Ki characters that begin at a space between two words, where tokenizers cut anyway, since
one call takes some two hundred times its text in memory (measured with `tokenizers` 0.23).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.local_files import BYTE

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 16_384

TokenArray = npt.NDArray[np.unsignedinteger[Any]]
"""Token ids in the smallest of uint16 and uint32 that holds the vocabulary."""


class Tokenizer(Protocol):
    """What the data source needs.

    `end_id` ends a document. `begin_id` may begin one (None: there is no such token), and does by default where the tokenizer
    itself puts it there (`adds_begin`). `fingerprint` names the mapping from text to ids.
    """

    vocabulary: int
    end_id: int
    begin_id: int | None
    adds_begin: bool
    fingerprint: str

    def encode(self, text: str, special_tokens: bool = False) -> TokenArray: ...

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]: ...

    def chat(self, messages: Sequence[dict[str, Any]]) -> tuple[TokenArray, npt.NDArray[np.uint8]]: ...

    def decode(self, ids: TokenArray) -> str: ...

    def save_pretrained(self, folder: Path) -> None: ...


class ByteTokenizer:
    """UTF-8 bytes, and one id that ends a document."""

    vocabulary = 257
    end_id = 256
    begin_id: int | None = None
    adds_begin = False
    fingerprint = BYTE

    def encode(self, text: str, special_tokens: bool = False) -> TokenArray:
        """One uint16 per byte. Lone surrogates, which UTF-8 cannot hold, become question marks."""
        if special_tokens and END_OF_TEXT in text:
            parts = [self.encode(part) for part in text.split(END_OF_TEXT)]
            end = np.array([self.end_id], np.uint16)
            return np.concatenate([piece for part in parts for piece in (part, end)][:-1])
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.uint16)

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """Bytes may be cut anywhere."""
        return (piece for piece in chunks if piece)

    def chat(self, messages: Sequence[dict[str, Any]]) -> tuple[TokenArray, npt.NDArray[np.uint8]]:
        """Raises InputError: bytes have no chat template."""
        raise InputError("tokenizer", BYTE, "expected one with a chat template, which `messages` needs")

    def decode(self, ids: TokenArray) -> str:
        """Text of the bytes; ends of documents are left out, broken UTF-8 is shown as U+FFFD."""
        return ids[ids < self.end_id].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def save_pretrained(self, folder: Path) -> None:
        """Write the same mapping as files that `AutoTokenizer.from_pretrained` loads."""
        from tokenizers import Tokenizer as FastTokenizer
        from tokenizers import decoders, models
        from transformers import PreTrainedTokenizerFast

        vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {END_OF_TEXT: self.end_id}
        fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
        fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        # Its name inside a text stays text there too, as it was when the model was trained.
        wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=fast, eos_token=END_OF_TEXT, split_special_tokens=True
        )
        wrapped.save_pretrained(folder)


class HubTokenizer:
    """A Hugging Face tokenizer, without the special tokens that it would add itself. Raises InputError without an end."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name, self._tokenizer = name, tokenizer
        ids = tokenizer.get_vocab()
        self.vocabulary = max(len(tokenizer), max(ids.values(), default=-1) + 1)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise InputError("tokenizer", name, "expected one with an end-of-text token")
        self.end_id = int(end)
        first = tokenizer.encode("", add_special_tokens=True)[:1]
        begin = tokenizer.bos_token_id
        self.begin_id = int(begin) if begin is not None else None
        self.adds_begin = begin is not None and begin != end and first == [begin]
        self._dtype: type[np.unsignedinteger[Any]] = np.uint16 if self.vocabulary <= 1 << 16 else np.uint32
        backend = getattr(tokenizer, "backend_tokenizer", None)
        mapping = backend.to_str() if backend is not None else json.dumps(ids, sort_keys=True)
        template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{self.end_id}/{begin}/{template}/{mapping}".encode()).hexdigest()
        self._drops_space = self._one_space_is_lost()

    def encode(self, text: str, special_tokens: bool = False) -> TokenArray:
        """Ids of the text, encoded in pieces."""
        rows = [self._encode(piece, special_tokens) for piece in self.pieces([text])]
        return np.concatenate(rows) if rows else np.zeros(0, self._dtype)

    def pieces(self, chunks: Iterable[str]) -> Iterator[str]:
        """The same text in pieces of about `PIECE_CHARACTERS`, cut where the ids do not change."""
        rest = ""
        for chunk in chunks:
            rest += chunk
            while len(rest) > PIECE_CHARACTERS:
                at = _between_words(rest)
                yield rest[:at]
                rest = rest[at + 1 if self._drops_space and rest[at] == " " else at :]
        if rest:
            yield rest

    def chat(self, messages: Sequence[dict[str, Any]]) -> tuple[TokenArray, npt.NDArray[np.uint8]]:
        """Ids of a conversation by the tokenizer's chat template, and 1 for each that belongs to an answer.

        The template's own generation marks say which these are; without marks they are what each answer adds to the
        conversation before it. Raises InputError: no template, one that takes other messages, or that rewrites what was said.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError("tokenizer", self._name, "expected one with a chat template, which `messages` needs")
        template = self._tokenizer.get_chat_template()
        if "{% generation" in template or "{%- generation" in template:
            found = self._applied(messages, return_dict=True, return_assistant_tokens_mask=True)
            return np.asarray(found["input_ids"], self._dtype), np.asarray(found["assistant_masks"], np.uint8)
        ids = self._ids(messages)
        mask = np.zeros(len(ids), np.uint8)
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before, after = self._ids(messages[:number], add_generation_prompt=True), self._ids(messages[: number + 1])
            if ids[: len(after)] != after or after[: len(before)] != before:
                expected = "expected a chat template that leaves earlier messages alone, or marks answers with {% generation %}"
                raise InputError("tokenizer", self._name, expected)
            mask[len(before) : len(after)] = 1
        return np.asarray(ids, self._dtype), mask

    def decode(self, ids: TokenArray) -> str:
        """The text, special tokens by their names."""
        return str(self._tokenizer.decode(ids.tolist()))

    def save_pretrained(self, folder: Path) -> None:
        """Write what `AutoTokenizer.from_pretrained` loads."""
        self._tokenizer.save_pretrained(folder)

    def _encode(self, text: str, special_tokens: bool) -> TokenArray:
        # verbose=False: a document longer than the model's context is what this is for, not worth a warning.
        split = {"split_special_tokens": not special_tokens}
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False, verbose=False, **split), dtype=self._dtype)

    def _one_space_is_lost(self) -> bool:
        """Whether a piece that begins with a word gets the space before it anyway, as tokenizers do that put one in front."""
        whole, first, second = (self._encode(text, False).tolist() for text in ("ab cd", "ab", "cd"))
        kept = first + self._encode(" cd", False).tolist()
        return bool(whole != kept and whole == first + second)

    def _ids(self, messages: Sequence[dict[str, Any]], **options: Any) -> list[int]:
        found = self._applied(messages, return_dict=True, **options)["input_ids"] if messages else []
        return [int(i) for i in found]

    def _applied(self, messages: Sequence[dict[str, Any]], **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(list(messages), tokenize=True, **options)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise InputError("tokenizer", self._name, f"its chat template takes no such messages ({_line(error)})") from error


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, or whatever `AutoTokenizer` finds under the name. Raises InputError if it finds nothing."""
    if name == BYTE:
        return ByteTokenizer()
    from transformers import AutoTokenizer

    try:
        # Tokenizers that come as code from a stranger's repository are not run: transformers refuses them by default.
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError("tokenizer", name, f"expected {BYTE!r} or a hub name ({_line(error)})") from error
    return HubTokenizer(name, tokenizer)


def _between_words(text: str) -> int:
    """The last place in the second half of the first piece where one space stands between two words; else the piece's end."""
    at = PIECE_CHARACTERS
    while (at := text.rfind(" ", PIECE_CHARACTERS // 2, at)) > 0:
        if text[at - 1].isalnum() and text[at + 1 : at + 2].isalnum():
            return at
    return PIECE_CHARACTERS


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
