"""The split model is the unsplit one: same weights from the seed, same loss, same gradients; wrong configs are named."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional

from gwtf_p2p.protocol.errors import InputError, LocalProtocolError
from gwtf_p2p.training.model.config import load_config
from gwtf_p2p.training.model.initial_weights import initialise
from gwtf_p2p.training.model.materialise import occupy
from gwtf_p2p.training.model.parts.layer_split import check_layer_split, weighed_layer_split
from gwtf_p2p.training.model.run_check import check_run
from gwtf_p2p.training.model.skeleton import Unit, build_skeleton
from gwtf_p2p.training.model.split import (
    PartSpec,
    build_data_part,
    build_stage_part,
    build_whole_model,
    default_layer_split,
    parameter_shapes,
    thin_layer_split,
)
from gwtf_p2p.training.model.structure import layer_count
from tests.training.swarm import GPT2, LLAMA, MODELS, Pipeline, assert_close, batch, microbatch, run_record


def all_parameters(config: dict[str, Any], stages: int, seed: int) -> dict[str, torch.Tensor]:
    run = run_record(config, stages, seed=seed)
    parts = [build_data_part(PartSpec.of(run, 0)), *(build_stage_part(PartSpec.of(run, k)) for k in range(1, stages + 1))]
    return {name: parameter for part in parts for name, parameter in part.parameters.items()}


@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_loss_and_every_gradient_equal_the_unsplit_models(model: str, stages: int) -> None:
    run = run_record(MODELS[model], stages)
    whole = build_whole_model(run.model_config, run.seed)
    pipeline = Pipeline(run)
    for index in range(2):
        tokens_BT, labels_BT = batch(index)
        loss = functional.cross_entropy(whole(tokens_BT, use_cache=False).logits.flatten(0, 1), labels_BT.flatten())
        loss.backward()
        trace = pipeline.train(microbatch(index), tokens_BT, labels_BT)
        assert trace.loss == pytest.approx(loss.item(), rel=1e-6)
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    assert_close(pipeline.sums(), expected, relative=2e-6)


@pytest.mark.parametrize("model", ["llama", "gpt2_tied"])
def test_loss_is_the_one_that_transformers_computes(model: str) -> None:
    run = run_record(MODELS[model])
    tokens_BT, labels_BT = batch(0)
    window = torch.cat([tokens_BT, labels_BT[:, -1:]], dim=1)
    expected = build_whole_model(run.model_config, run.seed)(window, labels=window, use_cache=False).loss.item()
    assert Pipeline(run).train(microbatch(0), tokens_BT, labels_BT).loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("stages", [2, 5])
def test_parts_start_from_the_whole_models_weights_bit_for_bit(model: str, stages: int) -> None:
    whole = dict(build_whole_model(MODELS[model], seed=11).named_parameters())
    parts = all_parameters(MODELS[model], stages, seed=11)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_another_seed_gives_other_weights_and_layers_differ_from_each_other() -> None:
    first, second = all_parameters(LLAMA, 3, seed=0), all_parameters(LLAMA, 3, seed=1)
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert not torch.equal(first[name.format(0)], second[name.format(0)])
    assert not torch.equal(first[name.format(0)], first[name.format(1)])


def test_initial_weights_have_the_models_own_distribution() -> None:
    config = {**GPT2, "n_embd": 64, "n_layer": 2, "initializer_range": 0.05}
    weights = all_parameters(config, 2, seed=0)
    assert weights["transformer.h.0.mlp.c_fc.weight"].std().item() == pytest.approx(0.05, rel=0.05)
    # GPT-2 shrinks what writes into the residual stream by the square root of twice the layers of the whole model.
    assert weights["transformer.h.1.mlp.c_proj.weight"].std().item() == pytest.approx(0.05 / 2.0, rel=0.05)
    assert torch.equal(weights["transformer.ln_f.weight"], torch.ones(64))


def test_what_the_initialiser_leaves_alone_gets_its_constructors_value() -> None:
    """Norms of older releases are set in their constructors only."""
    model = build_skeleton(load_config(LLAMA))
    occupy(model, {"model.norm.weight"})
    unit = Unit("model.norm")
    with mock.patch.object(type(model), "_init_weights", lambda self, module: None):
        initialise(model, [unit], seed=0)
    assert torch.equal(model.get_parameter("model.norm.weight"), torch.ones(LLAMA["hidden_size"]))


def test_a_parameter_without_any_initial_value_is_named() -> None:
    model = build_skeleton(load_config(LLAMA))
    occupy(model, {"model.norm.weight"})
    nowhere = mock.patch(
        "gwtf_p2p.training.model.initial_weights.values_of_constructors",
        lambda config, names: {name: torch.full((LLAMA["hidden_size"],), float("nan")) for name in names},
    )
    nothing = mock.patch.object(type(model.model), "_init_weights", lambda self, module: None)
    with nowhere, nothing, pytest.raises(LocalProtocolError, match=r"model\.norm\.weight: no initial value"):
        initialise(model, [Unit("model.norm")], seed=0)


def test_weights_of_other_parts_take_no_memory() -> None:
    part = build_stage_part(PartSpec.of(run_record(LLAMA), 2))
    absent = [p for name, p in part.model.named_parameters() if name not in part.parameters]
    assert len(absent) > len(part.parameters)
    assert all(parameter.untyped_storage().nbytes() == 4 for parameter in absent)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_shapes_are_known_without_building_the_part(model: str) -> None:
    run = run_record(MODELS[model])
    built = [build_data_part(PartSpec.of(run, 0)), *(build_stage_part(PartSpec.of(run, k)) for k in (1, 2, 3))]
    for stage, part in enumerate(built):
        shapes = {name: tuple(parameter.shape) for name, parameter in part.parameters.items()}
        assert parameter_shapes(PartSpec.of(run, stage)) == shapes
    assert ("lm_head.weight" in parameter_shapes(PartSpec.of(run, 0))) == (model in ("llama", "gpt2_untied"))


def test_layers_are_split_evenly_and_in_order() -> None:
    assert default_layer_split(7, 3) == ((0, 3), (3, 5), (5, 7))
    assert default_layer_split(4, 4) == ((0, 1), (1, 2), (2, 3), (3, 4))


@pytest.mark.parametrize(
    ("loads", "stages", "split"),
    [
        ([1, 1, 1, 1, 1, 1], 3, ((0, 2), (2, 4), (4, 6))),
        ([3, 1, 1, 1, 1, 1], 2, ((0, 2), (2, 6))),
        ([2, 1, 1, 1, 1, 1, 1, 4], 4, ((0, 2), (2, 5), (5, 7), (7, 8))),
        ([1, 9], 2, ((0, 1), (1, 2))),
        ([5], 1, ((0, 1),)),
        ([1] * 7, 3, ((0, 3), (3, 5), (5, 7))),
    ],
)
def test_layers_that_bear_more_are_in_shorter_ranges(loads: list[float], stages: int, split: object) -> None:
    assert weighed_layer_split(loads, stages) == split
    for count in range(1, len(loads) + 1):
        found = weighed_layer_split(loads, count)
        check_layer_split(found, len(loads))
        borne = [sum(loads[a:b]) for a, b in found]
        assert sum(b**2 for b in borne) <= sum(sum(loads[a:b]) ** 2 for a, b in default_layer_split(len(loads), count))


def test_the_ends_have_fewer_layers_where_data_peers_are_thin() -> None:
    """A head as large as three layers and an embedding as large: half of it counts."""
    config = {**LLAMA, "num_hidden_layers": 12, "tie_word_embeddings": False}
    layer = parameter_count({**config, "num_hidden_layers": 2}) - parameter_count({**config, "num_hidden_layers": 1})
    config["vocab_size"] = 3 * layer // config["hidden_size"]
    lengths = [end - start for start, end in thin_layer_split(config, 3)]
    assert sum(lengths) == 12 and lengths[2] < lengths[0] < lengths[1]
    assert thin_layer_split({**config, "vocab_size": 8}, 3) == default_layer_split(12, 3)


def parameter_count(config: dict[str, object]) -> int:
    """Of all layers."""
    return sum(math.prod(s) for s in parameter_shapes(PartSpec(config, ((0, config["num_hidden_layers"]),), 1, 0)).values())


@pytest.mark.parametrize("stages", [0, 7])
def test_more_stages_than_layers_names_the_field(stages: int) -> None:
    with pytest.raises(InputError, match="--stages: stages: expected 1 to 6"):
        default_layer_split(6, stages, "--stages")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (((0, 3), (4, 6)), "layer_split: expected a range that starts at layer 3, got 4-6"),
        (((0, 3), (3, 5)), "layer_split: expected ranges up to layer 6, got up to 5"),
        (((0, 6), (6, 6)), "layer_split: expected a range that starts at layer 6, got 6-6"),
    ],
)
def test_a_split_that_does_not_cover_the_layers_is_refused(split: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_run(run_record(LLAMA, layer_split=split))


def test_a_part_that_the_split_does_not_have_is_named() -> None:
    run = run_record(LLAMA, stages=3)
    for stage in (0, 4):
        with pytest.raises(InputError, match=f"stage: expected a stage of layers, 1 to 3, got {stage}"):
            build_stage_part(PartSpec.of(run, stage))
    with pytest.raises(InputError, match="stage: expected 0, the data peers' stage, got 1"):
        build_data_part(PartSpec.of(run, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, r"model_config\.model_type: expected one of the \d+ causal .*llama.* got 'lama'"),
        ({}, r"model_config\.model_type: expected one of the \d+ causal .* got None"),
        ({**LLAMA, "hiden_size": 64}, r"model_config\.hiden_size: unknown field of llama .*, expected hidden_size"),
        ({**LLAMA, "hidden_size": "64"}, r"model_config\.hidden_size: expected a whole number above 0, got '64'"),
        ({**LLAMA, "hidden_size": 18}, r"model_config\.hidden_size: expected a multiple of the 4 heads, got 18"),
        ({**LLAMA, "num_key_value_heads": 3}, r"model_config\.num_key_value_heads: expected a divisor"),
        ({**GPT2, "n_layer": -1}, r"model_config\.n_layer: expected a whole number above 0, got -1"),
        ({**GPT2, "add_cross_attention": True}, r"model_config\.add_cross_attention: expected false"),
        ({**LLAMA, "hidden_act": "nonesuch"}, r"model_config: expected a config that transformers can build"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, r"model_config\.hidden_size: .* got nothing"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_field(config: dict[str, Any], message: str) -> None:
    run = dataclasses.replace(run_record(LLAMA), model_config=config)
    for build in (lambda: check_run(run), lambda: build_data_part(PartSpec.of(run, 0))):
        with pytest.raises(InputError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_sequence_or_vocabulary_that_the_model_cannot_hold_is_named() -> None:
    with pytest.raises(InputError, match="sequence_length: expected at most the model's 64 positions, got 65"):
        check_run(run_record(GPT2, sequence_length=65))
    with pytest.raises(InputError, match=r"model_config\.vocab_size: expected at least the tokenizer's 300, got 257"):
        check_run(run_record(GPT2), vocabulary=300)
    check_run(run_record(GPT2, sequence_length=64), vocabulary=257)


def test_gpt2_may_be_written_with_the_general_field_names() -> None:
    general = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2}
    general |= {"max_position_embeddings": 64, "vocab_size": 257}
    assert layer_count(general) == 6
    first, second = all_parameters(general, 2, seed=3), all_parameters(GPT2, 2, seed=3)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_dropout_is_off_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = {**GPT2, "attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    with caplog.at_level(logging.WARNING):
        pipeline = Pipeline(run_record(config))
    assert "model_config.attn_pdrop" in caplog.text
    expected = Pipeline(run_record(GPT2)).train(microbatch(0), *batch(0)).loss
    assert pipeline.train(microbatch(0), *batch(0)).loss == expected
