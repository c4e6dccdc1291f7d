"""What a manifest may say, and what its name covers."""

from __future__ import annotations

import pytest

from gwtf_p2p.live.state.manifest import Manifest
from gwtf_p2p.live.state.options import CHUNK_BYTES
from gwtf_p2p.protocol.errors import RemoteProtocolError


def test_one_that_says_another_cut_of_the_same_chunks_is_not_taken_for_the_majority() -> None:
    """By its spans nobody's chunks would fit."""
    tensors, hashes = (("a", "torch.float32", (300_000,)),), ("h", "i")
    honest, other = Manifest(1, tensors, hashes), Manifest(1, tensors, hashes, CHUNK_BYTES - 8)
    other.check()
    assert honest.digest != other.digest and Manifest.from_plain(other.to_plain()) == other


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"version": 1, "tensors": 5, "hashes": []},
        {"version": 1, "tensors": [["a", "bool", [1]]], "hashes": []},
        {"version": 1, "tensors": [["a", "torch.float32", [1 << 40]], ["b", "torch.float32", [-1 << 40]]], "hashes": []},
        {"version": 1, "tensors": [["a", "torch.float32", [-2, -2]]], "hashes": []},
        {"version": 1, "tensors": [["a", "torch.float32", [8]]], "hashes": []},
        {"version": 1, "tensors": [["a", "torch.float32", [8]]], "hashes": ["h", "h"]},
        {"version": 1, "tensors": [["a", "torch.float32", [8]]], "hashes": ["h"], "chunk_bytes": 0},
        {"version": 1, "tensors": [["a", "torch.float32", [8]]], "hashes": ["h"], "chunk_bytes": 1 << 30},
        {"version": 1, "tensors": [["a", "torch.float32", [8]]], "hashes": ["h"], "chunk_bytes": None},
    ],
)
def test_a_hostile_manifest_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        Manifest.from_plain(plain).check()
