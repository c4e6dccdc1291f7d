"""Files are found by name and read by column: what is damaged costs itself alone, and what is not certain is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.training.data.columns import look_at
from gwtf_p2p.training.data.documents import Documents
from gwtf_p2p.training.data.tokenizer import ByteTokenizer

ROWS = [{"text": f"row {i} of the river", "score": i, "tags": [1, 2]} for i in range(20)]
TEXTS = [row["text"] for row in ROWS]


def texts_of(part: DatasetSpec | str | Path, told: list[str] | None = None) -> list[str]:
    """The documents of a dataset, as texts."""
    part = part if isinstance(part, DatasetSpec) else DatasetSpec(str(part))
    notes = told if told is not None else []
    documents = Documents(part, ByteTokenizer(), notes.append)
    found = []
    for file in documents.files:
        for document in documents.of_file(file):
            fragments = list(document)
            if fragments:
                ids = np.concatenate([fragment.ids for fragment in fragments])
                assert ids[-1] == ByteTokenizer.end_id
                assert [fragment.ends for fragment in fragments] == [False] * (len(fragments) - 1) + [True]
                found.append(ByteTokenizer().decode(ids))
    return found


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=6)


def as_arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def as_csv(path: Path, delimiter: str = ",") -> None:
    path.write_text(delimiter.join(["text", "score"]) + "\n" + "".join(f"{r['text']}{delimiter}{r['score']}\n" for r in ROWS))


WRITERS = {
    "train.parquet": as_parquet,
    "train.arrow": as_arrow_file,
    "train.jsonl": lambda path: path.write_bytes(lines(ROWS)),
    "train.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_bytes(lines(ROWS)),
    "train.csv": as_csv,
    "train.tsv": lambda path: as_csv(path, "\t"),
    "train.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS))),
    "train.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(lines(ROWS))),
    "train.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "train.csv.xz": lambda path: (as_csv(path), path.write_bytes(lzma.compress(path.read_bytes()))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_its_texts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)  # type: ignore[operator]
    assert texts_of(tmp_path) == texts_of(tmp_path / name) == TEXTS


def test_what_the_datasets_library_saved_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk(tmp_path / "several")
    assert texts_of(tmp_path / "one") == texts_of(tmp_path / "several") == TEXTS
    assert texts_of(DatasetSpec(str(tmp_path / "several"), split="test")) == TEXTS[3:4]
    with pytest.raises(InputError, match="split: expected one of train, test, got 'validation'"):
        texts_of(DatasetSpec(str(tmp_path / "several"), split="validation"))


def test_a_hub_datasets_files_are_read_like_local_ones(tmp_path: Path) -> None:
    """A folder with a configuration's name takes the way through the hub's library, without a network."""
    readme = "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: a/*.jsonl\n---\n"
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_bytes(lines(ROWS))
    assert texts_of(DatasetSpec(str(tmp_path), name="small")) == TEXTS
    with pytest.raises(InputError, match=r"large: |'large'"):
        texts_of(DatasetSpec(str(tmp_path), name="large"))


DAMAGES = ["jsonl.gz", "jsonl.bz2", "jsonl.xz", "json.gz", "csv.gz", "parquet", "arrow"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("cut", ["half", "empty", "other"])
def test_a_damaged_file_costs_itself_alone_and_is_told_by_name(kind: str, cut: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {i} {np.random.default_rng(i).bytes(30).hex()}"} for i in range(500)]
    plain = {"jsonl": lines(rows), "json": json.dumps(rows).encode()}
    plain["csv"] = b"text\n" + b"".join(row["text"].encode() + b"\n" for row in rows)
    path = tmp_path / f"b.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as writer:
            writer.write_table(pa.Table.from_pylist(rows), max_chunksize=50)
    else:
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind.split(".")[1]]
        path.write_bytes(compress(plain[kind.split(".")[0]]))
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "other": b"\x89PNG\r\n" * 40}[cut])
    for name in ("a", "c"):
        (tmp_path / f"{name}.{kind}").write_bytes(whole)
    told: list[str] = []
    found = texts_of(tmp_path, told)
    expected = [row["text"] for row in rows]
    assert found[:500] == found[-500:] == expected
    between = found[500:-500]
    assert between == expected[: len(between)]
    if cut != "empty" or kind in ("parquet", "arrow"):
        assert len([line for line in told if str(path) in line]) == 1, told
    assert all("\n" not in line for line in told)
    if cut == "half" and kind in ("jsonl.gz", "csv.gz", "json.gz", "arrow"):
        assert between, "what comes before the cut is used"


def test_a_dataset_of_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="expected rows with columns, found none in 2 files"):
        texts_of(tmp_path)


def test_lines_that_are_no_json_are_left_out_and_counted(tmp_path: Path) -> None:
    good = lines(ROWS).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*good[:3], b"{cut\n", b"\xff\xfe\n", b"[1, 2]\n", b"\n", *good[3:]]))
    told: list[str] = []
    assert texts_of(tmp_path, told) == TEXTS
    assert any("a.jsonl: 3 lines are no JSON objects and left out (the first is line 4)" in line for line in told)


def test_the_types_of_columns_that_are_not_read_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "one", "score": 1}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"score": {"deep": ["x"]}, "text": "two"}, {"lang": 5, "text": "three"}]))
    parquet.write_table(pa.Table.from_pylist([{"text": "four", "score": "high"}]), tmp_path / "c.parquet")
    assert texts_of(DatasetSpec(str(tmp_path), data_files=("*.jsonl", "*.parquet"))) == ["one", "two", "three", "four"]


def test_rows_without_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "one"}, {"text": None}, {"other": 1}, {"text": ""}, {"text": "two"}]))
    told: list[str] = []
    assert texts_of(tmp_path, told) == ["one", "two"]
    assert any("a.jsonl: 3 rows have no text in column 'text'" in line for line in told)


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({"id": "x7", "text": "a"}, "text"),
        ({"meta": "m", "content": "a"}, "content"),
        ({"body": "a", "score": 3, "tags": ["x"]}, "body"),
    ],
)
def test_a_column_that_is_certain_is_taken_and_told(row: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    told: list[str] = []
    assert look_at(DatasetSpec(str(tmp_path)), told.append)[1].name == chosen
    assert len(told) == 1 and f"column {chosen!r}" in told[0]
    for other in row.keys() - {chosen}:
        assert other in told[0]


@pytest.mark.parametrize(
    ("row", "setting"),
    [
        ({"repo_name": "r", "path": "p", "code": "c"}, "text_column"),
        ({"text": "a", "content": "b"}, "text_column"),
        ({"score": 1, "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"input_ids": [1, 2]}, "tokenized"),
        ({"a": 1, "b": 2.0}, "text_column"),
    ],
)
def test_a_column_that_is_not_certain_is_refused_with_all_columns(row: dict[str, Any], setting: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    with pytest.raises(InputError) as caught:
        look_at(DatasetSpec(str(tmp_path)), [].append)
    line = str(caught.value)
    assert all(name in line for name in row) and f'{setting} = "..."' in line and "\n" not in line


@pytest.mark.parametrize("setting", ["text_column", "messages", "tokenized"])
def test_a_column_that_is_named_wrongly_is_refused_with_all_columns(setting: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(InputError, match=rf"{setting}: expected a column of .*, got 'body'; .*text \(text\), score, tags"):
        look_at(DatasetSpec(str(tmp_path), **{setting: "body"}), [].append)  # type: ignore[arg-type]


def test_files_of_the_wanted_split_are_taken_and_others_told(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "x.jsonl").write_bytes(lines([{"text": split}]))
    told: list[str] = []
    assert texts_of(tmp_path, told) == ["train"]
    assert any("1 of 2 files are taken, whose names say train" in line for line in told)
    assert texts_of(DatasetSpec(str(tmp_path), split="validation")) == ["validation"]
    with pytest.raises(InputError, match="split: expected one of train, validation"):
        texts_of(DatasetSpec(str(tmp_path), split="test"))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (DatasetSpec("text:{}/*.nothing"), "expected at least one file, found none"),
        (DatasetSpec("text:{}/folder"), "expected at least one file, found none"),
        (DatasetSpec("{}/nowhere"), "no such file or folder"),
        (DatasetSpec("{}/folder"), "expected files of .*, found none"),
        (DatasetSpec("{}/unknown"), "expected files of .*, found photo.jpg"),
        (DatasetSpec("{}/unknown/photo.jpg"), "expected a file of .* by its name"),
        (DatasetSpec("{}/two"), "expected one format, found csv, jsonl; name some with data_files"),
        (DatasetSpec("{}/two", data_files=("*.parquet",)), "expected files in .*, found none like"),
        (DatasetSpec("text:{}/text.txt", encoding="klingon"), "encoding: expected one that Python knows"),
        (DatasetSpec("text:{}/binary.txt"), r"binary.txt: expected text, got a binary file \(NUL after byte"),
        (DatasetSpec("text:{}/latin.txt"), r"latin.txt: expected text, but byte 3 is not utf-8"),
        (DatasetSpec("text:{}/wide.txt"), r'wide.txt: expected UTF-8, got UTF-16 by its first bytes; say encoding = "utf-16"'),
    ],
)
def test_bad_datasets_are_one_line_that_names_them(part: DatasetSpec, message: str, tmp_path: Path) -> None:
    for folder in ("folder", "unknown", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "unknown" / "photo.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "two" / "a.csv").write_text("text\na\n")
    (tmp_path / "two" / "b.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "binary.txt").write_bytes(b"MZ\x00\x01text")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16"))
    path = part.path.format(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        texts_of(DatasetSpec(path, data_files=part.data_files, encoding=part.encoding))
    assert "\n" not in str(caught.value)


def test_a_text_in_its_own_encoding_is_read(tmp_path: Path) -> None:
    text = "añ ☃ café"
    (tmp_path / "wide.txt").write_bytes(text.encode("utf-16"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert texts_of(DatasetSpec(f"text:{tmp_path}/wide.txt", encoding="utf-16")) == [text]
    assert texts_of(f"text:{tmp_path}/marked.txt") == [text]


def test_text_files_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in [("b.txt", "second"), ("a.txt", "first"), ("empty.txt", ""), ("c.md", "not matched")]:
        (tmp_path / name).write_text(text)
    assert texts_of(f"text:{tmp_path}/*.txt") == ["first", "second"]


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that even root cannot read")
def test_an_unreadable_file_is_named() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem: expected a readable file \("):
        texts_of("text:/proc/self/mem")
