"""What is answered without torch: a user's mistake, help, and an identity are told at once, not after seconds of imports."""

from __future__ import annotations

import os
import subprocess
import sys
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


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "hivemind"):
            print("NOW HEAVY", flush=True)
            raise SystemExit(7)
sys.meta_path.insert(0, NoTorch())
from gwtf_p2p.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Ends where the first heavy import would begin."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo"], "gwtf demo: 1 bootstrap peer, 2 data peers, 6 stage peers in 3 stages"),
        (["peer", "--run_id", "r"], "starts: loading torch and transformers"),
        (["data", "--run_id", "r"], "starts: loading torch and transformers"),
    ],
)
def test_a_start_says_what_it_is_at_before_anything_heavy_is_loaded(words: list[str], told: str, tmp_path: Path) -> None:
    """These imports take seconds, or a minute on a slow disk; nobody should look at an empty terminal for so long."""
    whom = [] if words[0] == "demo" else ["--initial_peers", f"/ip4/127.0.0.1/tcp/31337/p2p/12D3Koo{'W' * 45}", "--port", "0"]
    command = [sys.executable, "-c", WITHOUT_TORCH, *words, *whom]
    environment = {**os.environ, "GWTF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(told) and (last, done.returncode) == ("NOW HEAVY", 7), done.stdout + done.stderr
