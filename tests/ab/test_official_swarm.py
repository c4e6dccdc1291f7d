"""The official SWARM beside ours: what can be said of it without a clone of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench.official_swarm.__main__ import main
from experiments.bench.official_swarm.processes import descendants, spent

BUSY = """
import os, sys
if not os.fork():
    while sum(os.times()[:2]) < 0.3:
        pass
    print(flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


def test_without_a_clone_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--official", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "is no clone of https://github.com/yandex-research/swarm" in said.err


def test_cpu_of_a_grandchild_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = spent(descendants(os.getpid()))
        assert child.pid in found
        assert sum(found[pid] for pid in descendants(child.pid)) >= 0.25
