"""Which files a dataset is: found and judged by name, nothing of them is read. Local ones need neither torch nor a network.

- `stdlib` is this Python's own library source without tests, site-packages and what depends on the machine: the same for
  everyone with the same build of Python. `text:GLOB` is local files of text, each one document, in the order of their names.
- A local file or folder: parquet, arrow, jsonl, json, csv, tsv or text, also compressed (gz, bz2, xz), or what `save_to_disk`
  of the `datasets` library wrote. Where names in a folder carry the names of splits, the files of the wanted split are taken.
- Anything else is a hub dataset, whose files the `datasets` library finds; they are read by the same readers as local ones.
"""

from __future__ import annotations

import glob
import json
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.wire.dataset import STDLIB, TEXT_PREFIX, DatasetSpec
from gwtf_p2p.training.data.local_files import in_home
from gwtf_p2p.training.data.order import DATASET

Tell = Callable[[str], None]
"""Hears every guess, and what was left out, one line each."""

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_GENERATED = ("_sysconfigdata", "config-")  # written when that Python was built, with that machine's paths
_BESIDE_DATA = {"readme.md", "license.txt", "license.md", "dataset_info.json", "dataset_infos.json", "state.json"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
_SPLITS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT_WORD = re.compile(r"(?:^|[^a-zA-Z])(" + "|".join(_SPLITS) + r")(?:$|[^a-zA-Z])")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file: a path or an address that `fsspec` opens, its format and compression, and a stamp that changes with it."""

    url: str
    format: str
    compression: str = ""
    stamp: str = ""

    @property
    def is_local(self) -> bool:
        return "://" not in self.url


def find_files(part: DatasetSpec, tell: Tell) -> tuple[DataFile, ...]:
    """The files of a dataset in a fixed order. Raises InputError that names the dataset, with what was found instead."""
    if part.path == STDLIB:
        return tuple(_local(path, "source") for path in _stdlib_files())
    if part.path.startswith(TEXT_PREFIX):
        found = [path for path in _expand(part.path.removeprefix(TEXT_PREFIX)) if path.is_file()]
        if not found:
            raise InputError(DATASET, part.path, "expected at least one file, found none")
        return tuple(_local(path, "text") for path in found)
    path = in_home(part.path)
    if path.is_file():
        return (_by_suffix(path),)
    if path.is_dir() and not part.name:
        return _folder(part, path, tell)
    if not path.exists() and (part.path.startswith((".", "/", "~")) or "://" in part.path):
        raise InputError(DATASET, part.path, f"no such file or folder; expected {_EXPECTED}")
    return _hub_files(part)


_EXPECTED = f"{STDLIB}, {TEXT_PREFIX}GLOB, a local file or folder, or a hub dataset"


def _folder(part: DatasetSpec, folder: Path, tell: Tell) -> tuple[DataFile, ...]:
    if part.data_files:
        paths = sorted({path for pattern in part.data_files for path in _expand(str(folder / pattern)) if path.is_file()})
        if not paths:
            raise InputError(DATASET, "data_files", f"expected files in {folder}, found none like {part.data_files[0]}")
        return tuple(_by_suffix(path) for path in paths)
    saved = _saved_to_disk(part, folder)
    if saved:
        return saved
    known: list[Path] = []
    unknown: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(folder))):
        if path.name.lower() not in _BESIDE_DATA:
            (known if _format_of(path.name) else unknown).append(path)
    if not known:
        found = f", found {', '.join(path.name for path in unknown[:5])}" if unknown else ", found none"
        raise InputError(DATASET, part.path, f"expected files of {', '.join(sorted(set(FORMATS.values())))}{found}")
    known = _of_split(part, known, folder, tell)
    kinds = sorted({_format_of(path.name) for path in known})
    if len(kinds) > 1:
        raise InputError(DATASET, part.path, f"expected one format, found {', '.join(kinds)}; name some with data_files")
    if unknown:
        tell(f"{folder}: {len(unknown)} files of other formats are left out ({unknown[0].name})")
    return tuple(_by_suffix(path) for path in known)


def _of_split(part: DatasetSpec, paths: Sequence[Path], folder: Path, tell: Tell) -> list[Path]:
    """Those whose names say the split; all of them where no name says one. Raises InputError: only other splits are there."""
    splits = {path: _split_of(path.relative_to(folder).as_posix()) for path in paths}
    named = sorted({split for split in splits.values() if split})
    if not named:
        if part.split != "train":
            raise InputError(DATASET, "split", f"expected none: no file name in {folder} says one, got {part.split!r}")
        return list(paths)
    wanted = _SPLITS.get(part.split, part.split)
    chosen = [path for path in paths if splits[path] == wanted]
    if not chosen:
        raise InputError(DATASET, "split", f"expected one of {', '.join(named)} (by the files' names), got {part.split!r}")
    if len(chosen) < len(paths):
        tell(f"{folder}: {len(chosen)} of {len(paths)} files are taken, whose names say {wanted}")
    return chosen


def _split_of(name: str) -> str:
    words = _SPLIT_WORD.findall(name)
    return _SPLITS[words[-1]] if words else ""


def _saved_to_disk(part: DatasetSpec, folder: Path) -> tuple[DataFile, ...]:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; empty for other folders."""
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json").get("splits", [])
        if part.split not in splits:
            raise InputError(DATASET, "split", f"expected one of {', '.join(map(str, splits))}, got {part.split!r}")
        folder = folder / part.split
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return ()
    names = _read_json(folder / "state.json").get("_data_files", [])
    paths = [folder / str(entry.get("filename", "")) for entry in names if isinstance(entry, dict)]
    if not paths or any(path.parent != folder or not path.is_file() for path in paths):
        raise InputError(DATASET, str(folder), "expected the arrow files that its state.json names")
    return tuple(_local(path, "arrow") for path in paths)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(DATASET, str(path), f"expected readable JSON ({error})") from error
    return plain if isinstance(plain, dict) else {}


def _hub_files(part: DatasetSpec) -> tuple[DataFile, ...]:
    """Files of a split as the `datasets` library finds them. Raises InputError; code from a repository is never run."""
    from datasets import load_dataset_builder  # type: ignore[import-untyped]

    try:
        builder = load_dataset_builder(part.path, part.name or None, data_files=list(part.data_files) or None)
        splits = builder.config.data_files or {}
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError) as error:
        reason = str(error).strip().splitlines()
        expected = f"expected {_EXPECTED} ({reason[0] if reason else type(error).__name__})"
        raise InputError(DATASET, part.path, expected) from error
    if part.split not in splits:
        raise InputError(DATASET, "split", f"expected one of {', '.join(map(str, splits)) or 'none'}, got {part.split!r}")
    return tuple(_by_suffix(Path(url)) if "://" not in url else _remote(url) for url in map(str, splits[part.split]))


def _remote(url: str) -> DataFile:
    kind, compression = _format_of(url), _compression_of(url)
    if not kind:
        raise InputError(DATASET, url, f"expected a file of {', '.join(sorted(set(FORMATS.values())))}")
    return DataFile(url, kind, compression)


def _by_suffix(path: Path) -> DataFile:
    kind = _format_of(path.name)
    if not kind:
        expected = f"expected a file of {', '.join(sorted(set(FORMATS.values())))} by its name, or {TEXT_PREFIX}{path} for text"
        raise InputError(DATASET, str(path), expected)
    return _local(path, kind)


def _local(path: Path, kind: str) -> DataFile:
    try:
        known = path.stat()
    except OSError as error:
        raise InputError(DATASET, str(path), f"expected a readable file ({error.strerror})") from error
    stamp = f"{known.st_size}/{known.st_mtime_ns}"
    return DataFile(str(path), kind, _compression_of(path.name), stamp)


def _format_of(name: str) -> str:
    lower = name.lower()
    for suffix in COMPRESSED:
        lower = lower.removesuffix(suffix)
    return FORMATS.get(Path(lower).suffix, "")


def _compression_of(name: str) -> str:
    return COMPRESSED.get(Path(name.lower()).suffix, "")


def _is_hidden(path: Path) -> bool:
    return any(word.startswith((".", "__")) for word in path.parts)


def _expand(pattern: str) -> list[Path]:
    return sorted(map(Path, glob.glob(str(in_home(pattern)), recursive=True)))  # noqa: PTH207 - also absolute ones


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return [root / name for name in names if not _LEFT_OUT.intersection(name.split("/")) and not name.startswith(_GENERATED)]
