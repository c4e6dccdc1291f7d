"""Every condition that can be foreseen, provoked: one line on stderr, the documented exit code, never a traceback."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gwtf_p2p.cli.shared import peer_flags
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.live.compute.memory_errors import OutOfMemory, memory_errors
from gwtf_p2p.live.discovery.dht import RunConflict
from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
from gwtf_p2p.live.libp2p.identity import IdentityInUse
from gwtf_p2p.live.peer import lifecycle
from gwtf_p2p.live.peer.config import ClockWrong, PeerConfig, RunMismatch, RunNotThere
from gwtf_p2p.protocol.ids import PeerId, RunId


def too_much() -> None:
    """More than any machine has."""
    with memory_errors("hold stage 1 of 2"):
        torch.empty(1 << 50, dtype=torch.uint8)


def raises(error: Exception) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def of_python() -> None:
    with memory_errors("compute"):
        raise MemoryError


def of_the_accelerator() -> None:
    """As torch words it, where there is an accelerator."""
    with memory_errors("compute"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB")


@pytest.mark.parametrize(
    ("happens", "code", "words"),
    [
        (raises(NetworkUnreachable([("/ip4/10.0.0.1/tcp/1", "no answer")])), 3, "no answer"),
        (raises(RunNotThere(RunId("mine"), 300.0, [RunId("other")])), 3, "runs that are there: other"),
        (raises(IdentityInUse(Path("identity.key"), "another process")), 4, "identity.key"),
        (raises(RunMismatch("run r: stage: this run has stages 1 to 2, not 9")), 5, "not 9"),
        (raises(RunConflict(RunId("r"), [PeerId("a"), PeerId("b")])), 5, "different run records"),
        (raises(DaemonFailed("p2pd does not start: no such file")), 6, "p2pd"),
        (raises(ClockWrong("the clock is 40 s off")), 6, "40 s"),
        (too_much, 6, "too little memory to hold stage 1 of 2"),
        (of_python, 6, "too little memory to compute"),
        (of_the_accelerator, 6, "2.50 GiB more"),
    ],
)
def test_each_condition_has_its_code_and_one_line(
    happens: Callable[[], None], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run_peer(*_: Any) -> None:
        happens()

    monkeypatch.setattr(lifecycle, "run_peer", run_peer)
    args = argparse.Namespace(verb="peer", log_level="WARNING")
    assert peer_flags.serve(PeerConfig("peer"), args, lambda report: None) == code
    printed = capsys.readouterr()
    assert words in printed.err and len(printed.err.strip().splitlines()) == 1 and not printed.out


def test_what_is_not_about_memory_passes() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_errors("compute"):
        raise RuntimeError("shape mismatch")
    with pytest.raises(OutOfMemory):
        too_much()


def test_json_has_no_word_for_what_is_not_finite() -> None:
    report = {"name": "stepped", "loss": float("nan"), "all": [1.0, float("inf")], "deep": {"x": (float("-inf"),)}}
    line = to_json(report)
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == {"name": "stepped", "loss": None, "all": [1.0, None], "deep": {"x": [None]}}
