"""Files to rows: only the wanted columns, a bounded piece of a file in memory at a time, and no file that ends the reader.

A row is a map of columns to plain values. A file that is cut, damaged or not what its name says is told once, by name, and
gives the rows before the damage; a line that is no JSON is left out, counted, and told at the end of its file. What a file's
own format says about the columns that are not read (their types, say) plays no part.

A file of text is one row with one column, whose value comes in chunks. Its encoding is checked: one that does not fit, or a
NUL byte, is refused with the file and the byte, since a binary file is nothing to train on. `source` files are Python's own.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.files import DataFile, Tell
from gwtf_p2p.training.data.order import DATASET

TEXT = "text"
CHUNK_BYTES = 1 << 18
_BATCH_ROWS = 256
_BETWEEN = re.compile(r"[\s,\[]*")
_FIELD_CHARACTERS = min(sys.maxsize, 2**31 - 1)

Row = dict[str, Any]


def read_rows(file: DataFile, columns: tuple[str, ...] | None, tell: Tell, batch_rows: int = _BATCH_ROWS) -> Iterator[Row]:
    """The rows of a file that holds columns; `columns` None: all of them. Raises InputError for a file that cannot be opened,
    and OSError when the network fails.
    """
    done = 0
    try:
        with _open(file) as stream:
            for row in _rows_of(file, stream, columns, batch_rows, tell):
                yield row
                done += 1
    except InputError:
        raise
    except _damages() as error:
        if not file.is_local and isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise  # the network, not the file
        tell(f"{DATASET}: {file.url}: is cut or damaged after {done} rows ({_reason(error)}); what comes before is used")


def read_text(file: DataFile, encoding: str) -> Iterator[str]:
    """A text file in chunks. Raises InputError: it cannot be read, is not in this encoding, or is binary."""
    python = file.format == "source"
    try:
        decoder = codecs.getincrementaldecoder(encoding)("replace" if python else "strict")
    except LookupError as error:
        raise InputError(DATASET, "encoding", f"expected one that Python knows, got {encoding!r}") from error
    done = 0
    try:
        with _open(file) as stream:
            for data in _chunks(stream):
                if done == 0 and encoding.lower() in ("utf-8", "utf8") and not python:
                    data = _without_mark(file, data)
                text = _decoded(file, decoder, data, done)
                done += len(data)
                yield text
            yield _decoded(file, decoder, b"", done, final=True)
    except InputError:
        raise
    except OSError as error:
        if done == 0:
            raise InputError(DATASET, file.url, f"expected a readable file ({error.strerror or error})") from error
        raise InputError(DATASET, file.url, f"cannot be read on after {done} bytes ({error.strerror or error})") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(DATASET, file.url, f"is cut or damaged after {done} bytes ({_reason(error)})") from error


def _without_mark(file: DataFile, data: bytes) -> bytes:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(DATASET, file.url, 'expected UTF-8, got UTF-16 by its first bytes; say encoding = "utf-16"')
    return data.removeprefix(codecs.BOM_UTF8)


def _decoded(file: DataFile, decoder: codecs.IncrementalDecoder, data: bytes, done: int, final: bool = False) -> str:
    try:
        text = decoder.decode(data, final)
    except UnicodeDecodeError as error:
        what = f"byte {done + max(error.start, 0)} is not {error.encoding}"
        raise InputError(DATASET, file.url, f"expected text, but {what}; name its encoding, or leave the file out") from error
    if "\x00" in text:
        raise InputError(DATASET, file.url, f"expected text, got a binary file (NUL after byte {done})")
    return text


@contextmanager
def _open(file: DataFile) -> Iterator[IO[bytes]]:
    """The file's contents, unpacked. Raises InputError for a file that is not there or may not be read."""
    with ExitStack() as stack:
        try:
            if file.is_local:
                raw: IO[bytes] = stack.enter_context(Path(file.url).open("rb"))
            else:
                import fsspec  # type: ignore[import-untyped]

                raw = stack.enter_context(fsspec.open(file.url, "rb"))
        except (OSError, ValueError, ImportError) as error:
            raise InputError(DATASET, file.url, f"expected a readable file ({_reason(error)})") from error
        # No buffer around these: it would ask for the missing rest of a block, and lose what there is of it in the error.
        if file.compression == "gzip":
            raw = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
        elif file.compression == "bz2":
            raw = cast(IO[bytes], stack.enter_context(bz2.BZ2File(raw)))
        elif file.compression == "xz":
            raw = cast(IO[bytes], stack.enter_context(lzma.LZMAFile(raw)))
        yield raw


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """What can be had at once, up to `CHUNK_BYTES`: of a cut file too, all that is there."""
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    while data := read(CHUNK_BYTES):
        yield data


def _rows_of(file: DataFile, stream: IO[bytes], columns: tuple[str, ...] | None, batch_rows: int, tell: Tell) -> Iterator[Row]:
    match file.format:
        case "parquet":
            return _parquet(stream, columns, batch_rows)
        case "arrow":
            return _arrow(stream, columns)
        case "jsonl":
            return _json_lines(file, stream, columns, tell)
        case "json":
            return _json(stream, columns)
        case "csv" | "tsv":
            return _csv(stream, columns, "," if file.format == "csv" else "\t")
    raise AssertionError(f"a format without a reader: {file.format}")


def _parquet(stream: IO[bytes], columns: tuple[str, ...] | None, batch_rows: int) -> Iterator[Row]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    opened = parquet.ParquetFile(stream)
    wanted = None if columns is None else [name for name in opened.schema_arrow.names if name in columns]
    if wanted == []:
        return
    for batch in opened.iter_batches(batch_size=batch_rows, columns=wanted):
        yield from batch.to_pylist()


def _arrow(stream: IO[bytes], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """Both of Arrow's formats: the stream that `datasets` writes, and the file with a footer."""
    import pyarrow as pa

    has_footer = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if has_footer:
        opened = pa.ipc.open_file(stream)
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    for batch in batches:
        chosen = batch if columns is None else batch.select([name for name in batch.schema.names if name in columns])
        for start in range(0, chosen.num_rows, _BATCH_ROWS):
            yield from chosen.slice(start, _BATCH_ROWS).to_pylist()


def _json_lines(file: DataFile, stream: IO[bytes], columns: tuple[str, ...] | None, tell: Tell) -> Iterator[Row]:
    bad, first_bad = 0, 0
    lines = iter(stream)
    number = 0
    try:
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row if columns is None else {name: row[name] for name in columns if name in row}
            else:
                bad, first_bad = bad + 1, first_bad or number
    finally:
        if bad:
            tell(f"{DATASET}: {file.url}: {bad} lines are no JSON objects and left out (the first is line {first_bad})")


def _json(stream: IO[bytes], columns: tuple[str, ...] | None) -> Iterator[Row]:
    """A list of objects, or one object after another, as lines or not; a few chunks of it in memory at a time."""
    chunks, to_text, decoder = _chunks(stream), codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    text, at, at_end = "", 0, False
    damage: BaseException | None = None
    while True:
        between = _BETWEEN.match(text, at)
        assert between is not None, "it matches the empty text too"
        at = between.end()
        try:
            row, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as unfinished:
            if damage is not None:
                raise damage from unfinished
            if at_end and text[at:].strip(" \t\r\n]"):
                raise
            if at_end:
                return
            more, wanted = [text[at:]], max(CHUNK_BYTES, len(text) - at)
            while wanted > 0 and not at_end:
                try:
                    chunk = next(chunks, b"")
                except _damages() as error:  # raised when what came before it is read
                    chunk, damage = b"", error
                at_end, wanted = not chunk, wanted - len(chunk)
                more.append(to_text.decode(chunk, final=at_end and damage is None))
            text, at = "".join(more), 0
            continue
        if isinstance(row, dict):
            yield row if columns is None else {name: row[name] for name in columns if name in row}


def _csv(stream: IO[bytes], columns: tuple[str, ...] | None, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_CHARACTERS)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines, delimiter=delimiter):
            yield {name: value for name, value in row.items() if name is not None and (columns is None or name in columns)}


def _damages() -> tuple[type[BaseException], ...]:
    """What the libraries raise for a damaged file. Arrow's own errors are known only where Arrow was loaded."""
    damages: tuple[type[BaseException], ...] = (OSError, EOFError, ValueError, RecursionError)
    damages += (zlib.error, lzma.LZMAError, csv.Error)
    arrow = sys.modules.get("pyarrow")
    return damages if arrow is None else (*damages, arrow.lib.ArrowException)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
