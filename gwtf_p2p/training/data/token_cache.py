"""The token ids of a dataset in a file that is mapped into memory: a dataset may be larger than memory, and is encoded once.

    <cache>/tokens/<name>/tokens.bin        one uint16 or uint32 per token, all documents in a row
                          ends.bin          one int64 per document: where the next one begins
                          mask.bin          chat only: one byte per token, 1 for what is learnt

`<cache>` is $GWTF_CACHE, else gwtf in $XDG_CACHE_HOME, else ~/.cache/gwtf; all of it may be deleted at any time. The name is a
hash of everything that the ids depend on: files with their sizes and times, column, tokenizer. A folder gets its name when it
is complete, so two data peers on one machine may make it at once. Bytes as tokens cost nothing to make again and are not kept:
their file has no name and is gone with the process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.documents import Documents, Fragment, MaskArray
from gwtf_p2p.training.data.local_files import BYTE, in_home
from gwtf_p2p.training.data.order import DATASET
from gwtf_p2p.training.data.tokenizer import TokenArray

FORMAT = 1
_FILES = ("tokens.bin", "ends.bin", "mask.bin")


@dataclass(frozen=True, slots=True)
class Tokens:
    """All documents of a dataset in a row, mapped from a file. `ends[d]` is where document d ends."""

    ids: TokenArray
    ends: npt.NDArray[np.int64]
    mask: MaskArray | None


def cache_folder() -> Path:
    """Where encoded datasets and places in streams are kept."""
    if named := os.environ.get("GWTF_CACHE"):
        return in_home(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gwtf"


def tokens_of(documents: Documents) -> Tokens:
    """Encodes a dataset, or takes what was encoded before. Raises InputError: no text, or the cache cannot be written."""
    dtype = np.dtype(np.uint16 if documents.tokenizer.vocabulary <= 1 << 16 else np.uint32)
    try:
        if documents.tokenizer.fingerprint == BYTE:
            with ExitStack() as stack:
                files = [stack.enter_context(tempfile.TemporaryFile(prefix="gwtf-tokens-")) for _ in _FILES]
                _encode(documents, files)
                return _mapped(files, dtype, documents.has_mask)
        return _kept(documents, dtype)
    except OSError as error:
        reason = error.strerror or error
        expected = f"expected room for the encoded dataset ({reason}); GWTF_CACHE and TMPDIR name other folders"
        raise InputError(DATASET, str(cache_folder()), expected) from error


def _kept(documents: Documents, dtype: np.dtype[Any]) -> Tokens:
    name = hashlib.sha256(f"{FORMAT}/{documents.fingerprint}".encode()).hexdigest()[:32]
    folder = cache_folder() / "tokens" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{name[:8]}-", dir=folder.parent))
        try:
            with ExitStack() as stack:
                _encode(documents, [stack.enter_context((making / file).open("wb")) for file in _FILES])
            with suppress(OSError):  # another data peer on this machine was first
                making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    with ExitStack() as stack:
        return _mapped([stack.enter_context((folder / file).open("rb")) for file in _FILES], dtype, documents.has_mask)


def _encode(documents: Documents, files: Sequence[IO[bytes]]) -> None:
    """Write every fragment as it comes; no more than one is in memory."""
    tokens, ends, mask = files
    count = 0
    for file in documents.files:
        for document in documents.of_file(file):
            for fragment in document:
                tokens.write(fragment.ids.tobytes())
                count += len(fragment.ids)
                if documents.has_mask:
                    mask.write(_mask_of(fragment).tobytes())
                if fragment.ends:
                    ends.write(np.int64(count).tobytes())
    if count == 0:
        raise InputError(DATASET, documents.part.path, f"expected text, got {len(documents.files)} files without any")
    for each in files:
        each.flush()


def _mask_of(fragment: Fragment) -> MaskArray:
    return fragment.mask if fragment.mask is not None else np.ones(len(fragment.ids), np.uint8)


def _mapped(files: Sequence[IO[bytes]], dtype: np.dtype[Any], has_mask: bool) -> Tokens:
    tokens, ends, mask = files
    return Tokens(
        np.memmap(tokens, dtype=dtype, mode="r"),
        np.memmap(ends, dtype=np.int64, mode="r"),
        np.memmap(mask, dtype=np.uint8, mode="r") if has_mask else None,
    )
