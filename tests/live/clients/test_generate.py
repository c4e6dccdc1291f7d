"""A text that a live swarm goes on with is the one that `transformers` makes of the exported weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig
from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.data.tokenizer import ByteTokenizer
from gwtf_p2p.training.state.export import export_hf

pytestmark = pytest.mark.live

STEPS, LENGTH, DEADLINE_S = 2, 32, 240.0
PROMPT = "def test_"
TOKEN = "sixteen characters of a token"


def record(thin: bool) -> RunRecord:
    plain = {
        "run_id": "texts",
        "thin_data_peers": thin,
        "model": {
            "model_type": "llama", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None,
            "eos_token_id": 256,
        },
        "dataset": f"text:{__file__}",
        "stages": 2,
        "seed": 1,
        "sequence_length": LENGTH,
        "microbatch_size": 2,
        "microbatches_per_data_peer": 2,
        "total_iterations": STEPS,
        "checkpoint_every": 1,
        "optimizer": {"learning_rate": 0.05},
        "evaluation": {"every": STEPS, "held_out": 0.1, "microbatches": 1, "prompts": [PROMPT], "text_tokens": 5},
    }  # fmt: skip
    return run_from_plain(plain, "test")


class Trained:
    """A swarm that has done its steps and goes on serving."""

    def __init__(self, folder: Path, thin: bool) -> None:
        self.run = record(thin)
        self.local = LocalRun(LocalRunConfig(1, 1, checkpoint_dir=folder / "checkpoints"), self.run, folder)
        self.heard: list[Mapping[str, Any]] = []
        self._end = time.monotonic() + DEADLINE_S

    def until_sampled(self) -> None:
        while not (self.local.finished(STEPS) and [r for r in self.heard if r["name"] == "sampled"][1:]):
            self.heard += [report for _, report in self.local.poll(0.2)]
            assert time.monotonic() < self._end, [self.local.tail(name) for name in self.local.lines]

    def generated(self, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
        """What `gwtf generate` says of this swarm."""
        where = ["--initial_peers", self.local.initial_peer(), "--run_id", self.run.run_id]
        command = [sys.executable, "-m", "gwtf_p2p", "generate", *words, *where]
        environment = {**os.environ, "GWTF_TOKEN": token}
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment)


@pytest.fixture(scope="module", params=["full", pytest.param("thin", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """By data peers that hold embedding and head, and by thin ones."""
    folder = tmp_path_factory.mktemp("texts")
    swarm = Trained(folder, request.param == "thin")
    try:
        swarm.local.begin()
        swarm.until_sampled()
        export_hf(folder / "checkpoints", folder / "out")
        yield swarm
    finally:
        swarm.local.stop()


def test_the_greedy_text_of_the_swarm_is_that_of_the_exported_weights(trained: Trained) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.local.folder / "out", dtype=torch.float32)
    prompt = torch.from_numpy(ByteTokenizer().encode(PROMPT).astype("int64"))[None]
    expected = model.generate(prompt, do_sample=False, max_new_tokens=LENGTH - prompt.shape[1], pad_token_id=0)
    ids = [int(i) for i in expected[0, prompt.shape[1] :] if int(i) != ByteTokenizer.end_id]
    done = trained.generated(PROMPT, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == ids
    assert found["versions"] == [STEPS] and found["tokens_per_s"] > 0
    sampled = {report["iteration"]: report["text"] for report in trained.heard if report["name"] == "sampled"}
    text = bytes(ids[:5]).decode(errors="replace")
    assert sampled[STEPS] == text and sampled.keys() == {0, STEPS}


def test_a_drawn_text_comes_with_its_speed(trained: Trained) -> None:
    done = trained.generated("x = ", "--temperature", "1.5", "--seed", "1", "--max_new_tokens", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "tokens/s" in done.stderr and f"weights after {STEPS} iterations" in done.stderr


def test_a_token_for_a_run_that_is_not_secret_is_one_too_many(trained: Trained) -> None:
    done = trained.generated("x = ", "--max_new_tokens", "1", token=TOKEN)
    assert done.returncode == 5 and "this run is not secret" in done.stderr and not done.stdout
