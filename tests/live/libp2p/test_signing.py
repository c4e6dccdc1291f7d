"""Signatures of a peer in a run: they fit its key, its text and its run, and nothing that a stranger sends raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.live.libp2p.identity import create_identity, load_identity
from gwtf_p2p.live.libp2p.signing import Signing
from gwtf_p2p.protocol.ids import RunId

RUN = RunId("run")


def test_a_signature_fits_one_key_one_text_and_one_run(tmp_path: Path) -> None:
    identity = create_identity(tmp_path / "a.key")
    mine, another = Signing(identity, RUN), Signing(create_identity(tmp_path / "b.key"), RUN)
    signature = mine.sign("text")
    assert another.verify(mine.key, "text", signature)
    assert not another.verify(another.key, "text", signature)
    assert not another.verify(mine.key, "another text", signature)
    assert not Signing(identity, RunId("another")).verify(mine.key, "text", signature)
    again = Signing(load_identity(tmp_path / "a.key"), RUN)
    assert again.key == mine.key, "a peer that starts again has signed what it has signed"


@pytest.mark.parametrize("wrong", ["", "=", "not base64!", "AAAA", "é", "A" * 88])
def test_what_is_no_key_or_no_signature_fits_nothing(tmp_path: Path, wrong: str) -> None:
    mine = Signing(create_identity(tmp_path / "a.key"), RUN)
    assert not mine.verify(wrong, "text", mine.sign("text"))
    assert not mine.verify(mine.key, "text", wrong)
