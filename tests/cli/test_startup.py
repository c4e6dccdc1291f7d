"""What is answered without torch: a user's mistake, help, and an identity are told at once, not after seconds of imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench.startup_modules import bootstrap_peer, commands, loaded_by

EXIT_CODES = [0, 0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("number", range(len(EXIT_CODES)))
def test_nothing_heavy_is_loaded_for_a_quick_answer(number: int, tmp_path: Path) -> None:
    words = commands(tmp_path)[number]
    code, _, loaded = loaded_by(words, tmp_path)
    assert (code, loaded) == (EXIT_CODES[number], "none"), words


def test_every_quick_command_is_tried(tmp_path: Path) -> None:
    assert len(commands(tmp_path)) == len(EXIT_CODES)


@pytest.mark.live
def test_a_bootstrap_peer_runs_without_torch(tmp_path: Path) -> None:
    with bootstrap_peer(tmp_path) as (process, started):
        assert started["maddrs"]
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
