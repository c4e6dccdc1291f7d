"""Documents in one window are trained on as if each were alone, or the family is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from gwtf_p2p.cli.shared.run_file import run_from_plain
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.batches import BatchSpec, as_batch
from gwtf_p2p.training.data.stream import Window
from gwtf_p2p.training.model.doors import document_positions
from gwtf_p2p.training.model.preflight import preflight
from gwtf_p2p.training.model.split import build_whole_model
from tests.training.swarm import GPT2, LLAMA, Pipeline, assert_close, microbatch, run_record

END = 256
GEMMA2: dict[str, Any] = {
    "model_type": "gemma2", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
BLOOM: dict[str, Any] = {"model_type": "bloom", "vocab_size": 257, "hidden_size": 16, "n_layer": 3, "n_head": 2}
DOCUMENTS = [[[1, 2, 3, END], [7, 7, 8, 9, 1, 4, 5, 6]], [[9, 8, 7, 6, 5, 4, END], [3, END], [4, 4, 1]]]
"""Of each row; the last one goes on in the next window."""


def test_positions_begin_again_behind_an_end_of_text() -> None:
    tokens_BT = torch.tensor([[5, 9, 5, 5, 5], [9, 9, 5, 9, 5]])
    assert document_positions(tokens_BT, 9).tolist() == [[0, 1, 0, 1, 2], [0, 0, 0, 1, 0]]


def test_what_follows_an_end_of_text_is_not_learnt() -> None:
    window = Window(np.array([1, 2, END, 3, 4], np.uint16), None)
    sizes = {"seed": 0, "sequence_length": 4, "microbatch_size": 1, "microbatches_per_data_peer": 1}
    assert as_batch([window], BatchSpec(**sizes), END)[1].tolist() == [[2, END, 3, 4]]
    assert as_batch([window], BatchSpec(**sizes, end_token=END), END)[1].tolist() == [[2, END, -100, 4]]


@pytest.mark.parametrize("config", [LLAMA, GPT2, GEMMA2], ids=["llama", "gpt2", "gemma2"])
def test_a_swarm_learns_of_packed_documents_what_one_process_learns_of_each_alone(config: dict[str, Any]) -> None:
    run = run_record(config, 2, attention="document", end_token=END)
    tokens_BT = torch.tensor([[token for document in row for token in document] for row in DOCUMENTS])
    labels_BT = torch.where(tokens_BT == END, -100, tokens_BT.roll(-1, 1))
    pipeline = Pipeline(run)
    trace = pipeline.train(microbatch(0), tokens_BT, labels_BT)
    whole = build_whole_model(config, run.seed)
    alone = [
        torch.cat([whole(input_ids=torch.tensor([document]), use_cache=False).logits[0] for document in row])
        for row in DOCUMENTS
    ]
    loss = functional.cross_entropy(torch.cat(alone), labels_BT.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    assert trace.loss == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert_close(pipeline.sums(), expected, 1e-4)
    packed = Pipeline(run_record(config, 2)).train(microbatch(0), tokens_BT, labels_BT)
    assert abs(packed.loss - trace.loss) > 1e-5, "without the option they see each other"


def test_the_option_is_refused_for_a_family_that_does_not_keep_documents_apart() -> None:
    assert preflight(GEMMA2, by_document=True).numbers == preflight(GEMMA2).numbers
    with pytest.raises(InputError, match=r"attention: expected window: bloom does not keep documents apart: beside others"):
        preflight(BLOOM, by_document=True)


def test_a_run_file_says_it_and_the_record_has_the_id_that_ends_a_document() -> None:
    plain = {
        "run_id": "packed", "seed": 0, "model": {**LLAMA, "num_hidden_layers": 2}, "attention": "document",
        "dataset": f"text:{__file__}", "sequence_length": 8, "microbatch_size": 2, "microbatches_per_data_peer": 1,
    }  # fmt: skip
    run = run_from_plain(plain, "test")
    assert run.end_token == END and [each.shape for each in run.boundary] == [(2, 8, 16), (2, 8)]
    assert run_from_plain({**plain, "attention": "window"}, "test").end_token == -1
