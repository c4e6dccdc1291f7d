"""A crash at any moment leaves the checkpoint before it; a folder of checkpoints becomes a model that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gwtf_p2p.live.compute.readings import Reading
from gwtf_p2p.live.state.manifest import Snapshot
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.state.checkpoint import (
    drop_checkpoint,
    drop_checkpoints,
    intact_iterations,
    latest_common_iteration,
    listed_iterations,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    stages_in,
    step_folder,
)
from gwtf_p2p.training.state.epochs import read_epochs, write_epochs
from gwtf_p2p.training.state.export import export_hf
from gwtf_p2p.training.state.tensor_file import write_tensors
from gwtf_p2p.training.state.tensors import export_state, state_hash
from tests.training.swarm import LLAMA, MODELS, Pipeline, batch, microbatch, run_record


def small_state(iteration: int) -> dict[str, torch.Tensor]:
    tensors = {name: torch.full((4,), float(iteration)) for name in ("weights/w", "first_moment/w", "second_moment/w")}
    return {**tensors, "step": torch.tensor(iteration)}


def save(root: Path, stage: int, *iterations: int) -> None:
    for iteration in iterations:
        save_checkpoint(root, run_record(LLAMA), stage, small_state(iteration))


def newest(root: Path, stage: int = 1) -> int | None:
    checkpoint = newest_checkpoint(root, run_record(LLAMA), stage)
    return None if checkpoint is None else checkpoint.iteration


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, run_record(LLAMA), 3, small_state(1200))
    assert folder == tmp_path / "stage_00003" / "step_00001200"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "optimizer.safetensors", "manifest.json"}
    assert state_hash(load_checkpoint(tmp_path, run_record(LLAMA), 3, 1200)) == state_hash(small_state(1200))


def test_what_was_written_after_the_point_that_the_run_went_back_to_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20, 30)
    write_epochs(tmp_path, read_epochs(tmp_path).going_on(1, 20))
    assert newest(tmp_path) == 20
    assert intact_iterations(tmp_path, run_record(LLAMA), 1) == (10, 20)
    assert listed_iterations(tmp_path, run_record(LLAMA).model_hash, 1) == (10, 20)
    with pytest.raises(InputError, match="gone back"):
        load_checkpoint(tmp_path, run_record(LLAMA), 1, 30)
    save_checkpoint(tmp_path, run_record(LLAMA), 1, small_state(30), epoch=1)
    assert newest(tmp_path) == 30


def test_a_folder_that_was_away_when_the_run_went_back_holds_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1, 10)
    write_epochs(tmp_path, read_epochs(tmp_path).going_on(2, 40))
    assert newest(tmp_path) is None
    (tmp_path / "epochs.json").write_text("torn")
    assert read_epochs(tmp_path).newest == 0


def crash_between_the_files(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "optimizer.safetensors").unlink()


def manifest_of_something_else(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def manifest_without_files(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1}')


DAMAGE: dict[str, Callable[[Path], None]] = {
    "crash_before_the_manifest": lambda folder: (folder / "manifest.json").unlink(),
    "crash_between_the_files": crash_between_the_files,
    "file_gone": lambda folder: (folder / "model.safetensors").unlink(),
    "file_cut_short": lambda folder: cut(folder / "model.safetensors"),
    "bit_flipped": lambda folder: flip(folder / "optimizer.safetensors"),
    "manifest_torn": lambda folder: cut(folder / "manifest.json"),
    "manifest_of_something_else": manifest_of_something_else,
    "manifest_without_files": manifest_without_files,
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 0, 10, 20)
    save(tmp_path, 1, 10, 20)
    assert (newest(tmp_path), latest_common_iteration(tmp_path, 1)) == (20, 20)
    DAMAGE[damage](step_folder(tmp_path, 1, 20))
    assert (newest(tmp_path), latest_common_iteration(tmp_path, 1)) == (10, 10)
    with pytest.raises(InputError, match="step_00000020: expected a complete checkpoint"):
        load_checkpoint(tmp_path, run_record(LLAMA), 1, 20)
    save(tmp_path, 1, 20)
    assert (newest(tmp_path), latest_common_iteration(tmp_path, 1)) == (20, 20)


def test_a_crash_while_writing_over_an_old_attempt_is_noticed(tmp_path: Path) -> None:
    """The new weights are in place, the manifest still describes the old ones."""
    save(tmp_path, 1, 10)
    save_checkpoint(tmp_path, run_record(LLAMA), 1, small_state(20))
    other = tmp_path / "other"
    save_checkpoint(other, run_record(LLAMA), 1, {**small_state(20), "weights/w": torch.ones(4)})
    step_folder(other, 1, 20).joinpath("model.safetensors").replace(step_folder(tmp_path, 1, 20) / "model.safetensors")
    assert newest(tmp_path) == 10


def test_the_newest_iteration_is_one_that_all_stages_have(tmp_path: Path) -> None:
    save(tmp_path, 0, 10, 20, 30)
    save(tmp_path, 1, 10, 20)
    save(tmp_path, 2, 20, 30)
    assert latest_common_iteration(tmp_path, 2) == 20
    assert latest_common_iteration(tmp_path, 3) is None
    assert newest(tmp_path, stage=3) is None


def test_what_is_not_worth_keeping_goes_and_unfinished_older_ones_with_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 20, 30, 40, 50)
    unfinished = [step_folder(tmp_path, 1, iteration) for iteration in (5, 20, 60)]
    for folder in unfinished:
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
    drop_checkpoints(tmp_path, 1, lambda there: {10, there[-1]})
    left = sorted(int(path.name.removeprefix("step_")) for path in (tmp_path / "stage_00001").iterdir())
    assert left == [10, 20, 50, 60]


def test_what_the_run_has_gone_back_from_makes_room_for_what_it_does_again(tmp_path: Path) -> None:
    save(tmp_path, 1, 10, 80, 90, 100)
    write_epochs(tmp_path, read_epochs(tmp_path).going_on(1, 10))
    save_checkpoint(tmp_path, run_record(LLAMA), 1, small_state(20), epoch=1)
    drop_checkpoints(tmp_path, 1, lambda there: there[-3:])
    assert intact_iterations(tmp_path, run_record(LLAMA), 1) == (10, 20)
    assert not step_folder(tmp_path, 1, 90).exists()


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1, 10)
    other = run_record(LLAMA, seed=8)
    with pytest.raises(InputError, match=r"manifest\.json: model_hash: expected the run's"):
        newest_checkpoint(tmp_path, other, 1)
    with pytest.raises(InputError, match="model_hash"):
        load_checkpoint(tmp_path, other, 1, 10)


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: expected a writable checkpoint directory"):
        save(tmp_path / "file", 1, 10)
    with pytest.raises(InputError, match="nowhere: expected a checkpoint directory"):
        stages_in(tmp_path / "nowhere")


def trained(model: str, root: Path) -> Pipeline:
    """A pipeline after two iterations, with a checkpoint of each."""
    run = run_record(MODELS[model])
    pipeline = Pipeline(run)
    optimizers = [PartOptimizer(executor.part.parameters, run.optimizer) for executor in pipeline.executors]
    for iteration in range(2):
        pipeline.train(microbatch(0, iteration), *batch(iteration))
        for stage, (executor, optimizer) in enumerate(zip(pipeline.executors, optimizers, strict=True)):
            optimizer.step(executor.gradient_vector().mean(), iteration)
            executor.reset_gradients()
            save_checkpoint(root, run, stage, export_state(executor.part.parameters, optimizer))
    return pipeline


@pytest.mark.parametrize("model", sorted(MODELS))
def test_an_exported_folder_loads_in_transformers_with_equal_logits(model: str, tmp_path: Path) -> None:
    pipeline = trained(model, tmp_path / "checkpoints")
    assert export_hf(tmp_path / "checkpoints", tmp_path / "out") == 2
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.tie_word_embeddings == (model in ("llama_tied", "gpt2_tied"))
    tokens_BT, _ = batch(9)
    with torch.no_grad():
        expected_BTV = pipeline.data.part.logits(tokens_BT, pipeline.forward(microbatch(9), tokens_BT)[-1][0])
        torch.testing.assert_close(loaded(tokens_BT).logits, expected_BTV, rtol=0, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("añ\n") == list("añ\n".encode())


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    save(tmp_path / "gap", 0, 10)
    save(tmp_path / "gap", 2, 10)
    save(tmp_path / "apart", 0, 10)
    save(tmp_path / "apart", 1, 20)
    save(tmp_path / "few", 0, 10)
    save(tmp_path / "few", 1, 10)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    trained("llama", tmp_path / "good")
    for root, out, message in [
        ("nowhere", "out", "nowhere: expected a checkpoint directory"),
        ("gap", "out", r"found those of stages \[0, 2\]"),
        ("apart", "out", "expected an iteration of which stages 0 to 1 all have an intact checkpoint"),
        ("few", "out", "expected checkpoints of stages 0 to 3, found up to 1"),
        ("good", "full", "full: expected a new or empty folder"),
    ]:
        with pytest.raises(InputError, match=message):
            export_hf(tmp_path / root, tmp_path / out)
    manifest = step_folder(tmp_path / "good", 2, 2) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model_hash": "another"}))
    with pytest.raises(InputError, match="model_hash: expected checkpoints of one run"):
        export_hf(tmp_path / "good", tmp_path / "out")


def test_a_checkpoint_of_another_number_of_data_peers_is_refused_unless_the_run_says_so(tmp_path: Path) -> None:
    one, two = run_record(LLAMA, data_peers=1), run_record(LLAMA, data_peers=2)
    save_checkpoint(tmp_path, one, 0, small_state(25))
    with pytest.raises(InputError, match=r"data_peers: expected data_peers_before = \[\[25, 1\]\], .* says \[\[25, 2\]\]"):
        intact_iterations(tmp_path, two, 0)
    said = run_record(LLAMA, data_peers=2, data_peers_before=((25, 1),))
    assert intact_iterations(tmp_path, said, 0) == (25,)
    save_checkpoint(tmp_path, said, 0, small_state(30))
    assert intact_iterations(tmp_path, said, 0) == (25, 30)
    with pytest.raises(InputError, match=r"\[\[25, 1\], \[30, 2\]\]"):
        load_checkpoint(tmp_path, two, 0, 30)
    save_checkpoint(tmp_path, one, 1, small_state(25))
    assert intact_iterations(tmp_path, two, 1) == (25,), "a stage peer deals no windows"


def test_files_are_those_of_safetensors_whatever_the_sizes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3.0),
        "step": torch.tensor(7),
        "b": torch.arange(15.0).reshape(5, 3).t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    for name in ("one", "other"):
        write_tensors(tmp_path / name, dict(reversed(tensors.items())) if name == "other" else tensors)
    loaded = load_file(tmp_path / "one")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_snapshot_lies_on_the_disk_and_is_the_state_that_was_read(tmp_path: Path) -> None:
    state = {"weights/b": torch.arange(4.0), "step": torch.tensor(3), "weights/a": torch.ones(2, 2)}
    snapshot = Snapshot(Reading(3, state), tmp_path)
    found = snapshot.manifest.state_in(snapshot._scratch)
    assert list(found) == sorted(state) and all(torch.equal(found[name], tensor) for name, tensor in state.items())
    at, size = snapshot.manifest.span_of(0)
    assert bytes(snapshot.chunk(0)) == bytes(snapshot._scratch.read(at, size)) and size == 4 * 4 + 8 + 4 * 4


def test_a_checkpoint_is_read_tensor_by_tensor_and_stays_readable_when_it_is_dropped(tmp_path: Path) -> None:
    run, state = run_record(LLAMA), small_state(30)
    save_checkpoint(tmp_path, run, 1, state)
    found = load_checkpoint(tmp_path, run, 1, 30)
    drop_checkpoint(tmp_path, 1, 30)
    assert state_hash(found) == state_hash(state)
    one, other = found["step"], found["step"]
    assert one.data_ptr() != other.data_ptr(), "nothing of it is kept in memory"


def test_a_checkpoint_of_weights_that_changed_while_it_was_written_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training went on without it"):
        save_checkpoint(tmp_path, run_record(LLAMA), 1, small_state(10), read=lambda: False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
