"""Inputs of public bug reports, where they lie beside this checkout, and memory that does not grow with one large file."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data import tokenizer as tokenizer_module
from tests.training.data.tokenizers_for_tests import byte_level

CASES = Path(__file__).parents[4] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs of public bug reports are not beside this checkout")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):  # type: ignore[no-untyped-def]
    """Runs one of the reports' programs, which name a module as it was called then; returns what it printed and logged."""

    def run(program: str, *words: str) -> str:
        monkeypatch.setitem(sys.modules, "gwtf_p2p.training.tokenizer", tokenizer_module)
        monkeypatch.setattr(sys, "argv", [program, *words])
        monkeypatch.chdir(CASES)
        runpy.run_path(str(CASES / program), run_name="__main__")
        return capsys.readouterr().out + caplog.text

    return run


@needs_cases
def test_a_second_data_peer_later_reads_no_window_twice(shown) -> None:  # type: ignore[no-untyped-def]
    assert "200 windows before, 192 after, 0 of these for the second time" in shown("two_data_peers_later.py")


@needs_cases
def test_a_tokenizer_with_a_gap_has_all_of_its_ids_counted(shown) -> None:  # type: ignore[no-untyped-def]
    assert "largest id 90 of a vocabulary of 91 " in shown("show_batches.py", "text:*.py", "./tokenizer-with-a-gap")


@needs_cases
def test_no_column_is_taken_by_its_position(shown) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=r"repo_name \(text\), path .*, code \(text\); name one: .*text_column"):
        shown("show_batches.py", "./column-by-position", "byte")


@needs_cases
def test_a_cut_shard_is_told_and_the_rest_is_trained_on(shown) -> None:  # type: ignore[no-untyped-def]
    printed = shown("show_batches.py", "./cut-shard", "byte")
    assert "largest id 256" in printed
    told = [line for line in printed.splitlines() if "train-00001-of-00002.jsonl.gz" in line]
    assert len(told) == 1 and "is cut or damaged after" in told[0] and "after 0 rows" not in told[0]


@needs_cases
def test_a_column_that_comes_late_does_not_matter(shown) -> None:  # type: ignore[no-untyped-def]
    printed = shown("show_batches.py", "./late-column", "byte")
    assert "largest id 256" in printed and "column 'text'" in printed


MEMORY = """
import json, resource, sys
from pathlib import Path
from gwtf_p2p.training.data.batches import BatchSpec, open_dataset
from gwtf_p2p.training.data.tokenizer import load_tokenizer
kind, name, folder, megabytes = sys.argv[1:]
words = " ".join("the river runs under the stone bridge".split()[i * i % 7] for i in range(180_000))
file = Path(folder) / f"one.{kind}"
with file.open("w") as out:
    for _ in range(int(megabytes)):
        out.write(words + "\\n" if kind == "txt" else json.dumps({"text": words}) + "\\n")
tokenizer = load_tokenizer(name)
tokenizer.encode("the river")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_dataset(f"text:{file}" if kind == "txt" else str(file), tokenizer, BatchSpec(0, 64, 2, 4)).batch(0, 0, 0, 1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / file.stat().st_size)
"""


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("tokenizer", ["byte", "hub"])
def test_one_large_file_takes_less_than_ten_times_its_text(kind: str, tokenizer: str, tmp_path: Path) -> None:
    name = "byte" if tokenizer == "byte" else str(byte_level(tmp_path / "tokenizer"))
    words = [sys.executable, "-c", MEMORY, kind, name, str(tmp_path), "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10, f"{done.stdout.strip()} times the text"
