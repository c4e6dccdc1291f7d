"""What lies in a file instead of in memory comes back to the bit, and a disk without room is no failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gwtf_p2p.training.compute.values import all_of
from gwtf_p2p.training.state.scratch import Scratch, ScratchGradient, scratch_folder
from gwtf_p2p.training.state.stored import described, one_behind_the_other

SHAPES: dict[str, tuple[int, ...]] = {"b": (300, 7), "a": (), "empty": (0, 3), "c": (5,)}


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_gradient_comes_back_as_it_was_put_in_pieces_in_any_order(tmp_path: Path, in_memory: bool) -> None:
    full = tmp_path / "no folder"
    full.write_text("a file stands in the way, as a full disk would")
    gradient = ScratchGradient(SHAPES, full if in_memory else tmp_path)
    assert gradient.scratch.is_in_memory is in_memory
    tensors = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}
    for name in ("c", "a", "empty"):
        gradient.put(name, 0, tensors[name])
    flat = tensors["b"].view(-1)
    gradient.put("b", 1000, flat[1000:])
    gradient.put("b", 0, flat[:1000])
    found = all_of(gradient)
    assert list(found) == list(SHAPES)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(gradient.piece("b", 998, 1003), flat[998:1003])
    assert [path.name for path in tmp_path.iterdir()] == ["no folder"], "nothing is left when the peer is killed now"


def test_a_state_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    state = {"x": torch.arange(30.0).view(10, 3), "step": torch.tensor(7), "none": torch.empty(0, 2)}
    scratch, at = Scratch(10 * 3 * 4 + 8, tmp_path), 0
    for tensor in state.values():
        data = tensor.numpy().tobytes()
        scratch.write(at, data)
        at += len(data)
    found = one_behind_the_other(scratch, described(state))
    assert list(found) == list(state) and all(torch.equal(found[name], tensor) for name, tensor in state.items())
    found["x"].zero_()
    assert torch.equal(found["x"], state["x"]), "what is read is fresh memory"
    with pytest.raises(OSError, match="ends early"):
        scratch.read(120, 16)


def test_the_folder_is_the_first_that_is_wished_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scratch_folder(None, tmp_path, Path("elsewhere")) == tmp_path
    monkeypatch.delenv("TMPDIR", raising=False)
    assert scratch_folder(None, None).is_dir()
