"""A text counts as a peer's by its signature alone: in one run, for one text, from one key, and there is only one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwtf_p2p.live.libp2p.audit_signing import signer, verifier
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.protocol.ids import PeerId, RunId

RUN = RunId("run")


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    folder: Path = tmp_path_factory.mktemp("keys")
    return create_identity(folder / "one.key"), create_identity(folder / "two.key")


def test_a_signature_is_of_one_peer_one_run_and_one_text(identities: tuple[Identity, Identity]) -> None:
    one, two = identities
    signed = signer(one, RUN)("text")
    verify = verifier(RUN)
    assert verify(one.peer_id, "text", signed)
    assert not verify(one.peer_id, "another text", signed)
    assert not verify(two.peer_id, "text", signed)
    assert not verifier(RunId("another"))(one.peer_id, "text", signed)
    key, _, _ = signed.partition(".")
    _, _, other = signer(two, RUN)("text").partition(".")
    assert not verify(one.peer_id, "text", f"{key}.{other}")


def test_a_text_has_one_signature_so_a_draw_cannot_be_chosen(identities: tuple[Identity, Identity]) -> None:
    signed = signer(identities[0], RUN)("text")
    assert signed == signer(identities[0], RUN)("text")
    key, _, encoded = signed.partition(".")
    bits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = encoded.rstrip("=")[-1]
    others = [encoded.replace(last + "==", bit + "==") for bit in bits if bit != last]  # some of them are the same bytes
    for spelled in (f"{key} a comment.{encoded}", f" {key}.{encoded}", *(f"{key}.{other}" for other in others)):
        assert not verifier(RUN)(identities[0].peer_id, "text", spelled)


@pytest.mark.parametrize("damaged", ["", ".", "x", "x.y", "AAAA.AAAA", "é.é", "a" * 1200])
def test_what_is_no_signature_is_nobodys(damaged: str, identities: tuple[Identity, Identity]) -> None:
    assert not verifier(RUN)(identities[0].peer_id, "text", damaged)
    assert not verifier(RUN)(PeerId(""), "text", damaged)


def test_a_signature_fits_into_a_message(identities: tuple[Identity, Identity]) -> None:
    assert len(signer(identities[0], RUN)("text")) <= 1200
