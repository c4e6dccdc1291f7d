"""`gwtf generate`: who it is and whom it believes are the flags', and no text is lost on the way to stdout."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gwtf_p2p.cli.clients import generate
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.peer.config import PeerConfig


def config_of(folder: Path, *words: str) -> PeerConfig:
    parser = argparse.ArgumentParser()
    generate.add_parser(parser.add_subparsers(dest="verb"))
    peer = create_identity(folder / "bootstrap.key").peer_id
    where = ("--initial_peers", f"/ip4/127.0.0.1/tcp/1/p2p/{peer}", "--run_id", "r")
    return generate.config_of(parser.parse_args(["generate", "a text", *where, *words]), folder)


def test_the_owner_the_token_and_the_identity_of_the_flags_are_those_that_it_joins_with(tmp_path: Path) -> None:
    owner, own = create_identity(tmp_path / "owner.key").peer_id, tmp_path / "own.key"
    config = config_of(tmp_path, "--run_owner", owner, "--token", "correct horse battery staple", "--identity_path", str(own))
    assert (config.run_owner, config.token, config.identity_path) == (owner, "correct horse battery staple", own)


def test_without_flags_its_identity_passes_and_it_has_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GWTF_TOKEN", raising=False)
    config = config_of(tmp_path)
    assert (config.run_owner, config.token, config.identity_path) == (None, "", tmp_path / "identity.key")


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        (["a", "a\ufffd", "a\u00e9", "a\u00e9b"], "a\u00e9b"),
        (["well ", "well.", "well. And"], "well . And"),
        (["\ufffd"], "\ufffd"),
    ],
    ids=["half a character", "a space that was taken back", "half a character at the end"],
)
def test_no_text_is_swallowed(texts: list[str], printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    printer = generate._Printer(as_json=False)
    for text in texts:
        printer({"name": "text_so_far", "text": text})
    printer({"name": "text", "text": texts[-1], "versions": [1], "tokens": [1], "seconds": 1.0, "tokens_per_s": 1.0})
    assert capsys.readouterr().out == printed + "\n"
