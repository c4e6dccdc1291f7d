"""Peers that are started as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.peer.verbs import Peer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Starts `gwtf` verbs as a user does, each with an identity of its own."""
    peers: list[Peer] = []

    def go(*words: str) -> Peer:
        where = ["--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--identity_path", str(tmp_path / f"{len(peers)}.key")]
        with (tmp_path / f"{len(peers)}.log").open("w") as log:
            peers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gwtf_p2p", *words, *where, "--json"],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "GWTF_HOME": str(tmp_path)},
                )
            )
        return peers[-1]

    yield go
    for peer in peers:
        peer.kill()
        peer.communicate()
