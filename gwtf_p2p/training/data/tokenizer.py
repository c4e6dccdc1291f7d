"""Text to token ids: bytes by default, or any Hugging Face tokenizer by its hub name or folder.

The byte tokenizer needs no download and no training: ids 0-255 are the bytes of UTF-8, 256 ends a document. A model that uses
it needs `vocab_size` >= 257.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.errors import InputError

BYTE = "byte"
END_OF_TEXT = "<|endoftext|>"

TokenArray = npt.NDArray[np.unsignedinteger[Any]]
"""Token ids in the smallest of uint16 and uint32 that holds the vocabulary."""


class Tokenizer(Protocol):
    """What the data source needs; `end_id` separates documents."""

    vocabulary: int
    end_id: int

    def encode(self, text: str) -> TokenArray: ...

    def decode(self, ids: TokenArray) -> str: ...

    def save_pretrained(self, folder: Path) -> None: ...


class ByteTokenizer:
    """UTF-8 bytes, and one id that ends a document."""

    vocabulary = 257
    end_id = 256

    def encode(self, text: str) -> TokenArray:
        """One uint16 per byte. Lone surrogates, which UTF-8 cannot hold, become question marks."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.uint16)

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
        wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=END_OF_TEXT)  # type: ignore[no-untyped-call]
        wrapped.save_pretrained(folder)


class HubTokenizer:
    """A Hugging Face tokenizer, without the special tokens that it would add around a text."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = len(tokenizer)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise InputError("tokenizer", name, "expected one with an end-of-text token")
        self.end_id = int(end)
        self._dtype: type[np.unsignedinteger[Any]] = np.uint16 if self.vocabulary <= 1 << 16 else np.uint32

    def encode(self, text: str) -> TokenArray:
        # verbose=False: a document longer than the model's context is what this is for, not worth a warning.
        ids = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return np.asarray(ids, dtype=self._dtype)

    def decode(self, ids: TokenArray) -> str:
        return str(self._tokenizer.decode(ids.tolist()))

    def save_pretrained(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, or whatever `AutoTokenizer` finds under the name. Raises InputError if it finds nothing."""
    if name == BYTE:
        return ByteTokenizer()
    from transformers import AutoTokenizer

    try:
        # Tokenizers that come as code from a stranger's repository are not run: transformers refuses them by default.
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()
        raise InputError("tokenizer", name, f"expected {BYTE!r} or a hub name ({reason[0] if reason else error!r})") from error
    return HubTokenizer(name, tokenizer)
