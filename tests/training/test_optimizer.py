"""Each part steps alone and gets the weights of the whole model's step; its state can be handed on and compared."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gwtf_p2p.protocol.errors import LocalProtocolError, RemoteProtocolError
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.optimizer import PartOptimizer, learning_rate
from gwtf_p2p.training.model.split import PartSpec, build_stage_part, build_whole_model
from gwtf_p2p.training.state.tensors import export_state, live_state, load_state, state_hash
from tests.training.swarm import LLAMA, MODELS, Pipeline, batch, microbatch, run_record

SPEC = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1, schedule="cosine", warmup_iterations=2, total_iterations=6)


def stage_and_optimizer(spec: OptimizerSpec = SPEC, steps: int = 0) -> tuple[dict[str, torch.nn.Parameter], PartOptimizer]:
    """Stage 1 of the LLaMA after some steps with made-up gradients."""
    parameters = build_stage_part(PartSpec.of(run_record(LLAMA), 1)).parameters
    optimizer = PartOptimizer(parameters, spec)
    for iteration in range(steps):
        optimizer.step(made_up_gradient(parameters, iteration), iteration)
    return parameters, optimizer


def made_up_gradient(parameters: dict[str, torch.nn.Parameter], number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {name: torch.randn(parameter.shape, generator=generator) for name, parameter in parameters.items()}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_parts_step_to_the_whole_models_weights(model: str) -> None:
    run = run_record(MODELS[model], optimizer=SPEC)
    whole = dict(build_whole_model(run.model_config, run.seed).named_parameters())
    whole_optimizer = PartOptimizer(whole, SPEC)
    pipeline = Pipeline(run)
    optimizers = [PartOptimizer(executor.part.parameters, SPEC) for executor in pipeline.executors]
    for iteration in range(4):
        pipeline.train(microbatch(0, iteration), *batch(iteration))
        means = [executor.gradient_vector().mean() for executor in pipeline.executors]
        for optimizer, mean in zip(optimizers, means, strict=True):
            optimizer.step(mean, iteration)
        whole_optimizer.step({name: gradient for mean in means for name, gradient in mean.items()}, iteration)
        for executor in pipeline.executors:
            executor.reset_gradients()
    split = {name: parameter for executor in pipeline.executors for name, parameter in executor.part.parameters.items()}
    assert split.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(split[name], whole[name])] == []


def test_one_step_is_adamw_written_out() -> None:
    spec = OptimizerSpec(learning_rate=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.5)
    weight, bias = torch.nn.Parameter(torch.full((1, 1), 2.0)), torch.nn.Parameter(torch.full((1,), 2.0))
    optimizer = PartOptimizer({"weight": weight, "bias": bias}, spec)
    report = optimizer.step({"weight": torch.full((1, 1), 3.0), "bias": torch.full((1,), -4.0)}, 0)
    # The first step of Adam has length lr; decay multiplies by 1 - lr * weight_decay, and spares the vector.
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)
    assert bias.item() == pytest.approx(2.0 + 0.1)
    assert report.gradient_norm == pytest.approx(5.0)
    assert report.learning_rate == 0.1


def test_a_part_is_clipped_by_its_own_norm_and_the_callers_gradient_stays() -> None:
    spec = dataclasses.replace(SPEC, gradient_clip=1.0, schedule="constant", warmup_iterations=0, weight_decay=0.0)
    (clipped, optimizer), (scaled, reference) = stage_and_optimizer(spec), stage_and_optimizer(spec)
    gradient = made_up_gradient(clipped, 0)
    kept = {name: tensor.clone() for name, tensor in gradient.items()}
    report = optimizer.step(gradient, 0)
    norm = torch.cat([tensor.flatten() for tensor in kept.values()]).norm().item()
    assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert all(torch.equal(gradient[name], kept[name]) for name in kept)
    reference.step({name: tensor * 0.999 / norm for name, tensor in kept.items()}, 0)  # just under the limit: not clipped
    moments, expected = optimizer.moments(), reference.moments()
    for name in scaled:
        torch.testing.assert_close(moments[name][0], expected[name][0] / 0.999, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]),
    ],
)
def test_schedules(schedule: str, rates: list[float]) -> None:
    spec = OptimizerSpec(learning_rate=1.0, schedule=schedule, warmup_iterations=2, total_iterations=6)
    assert [learning_rate(spec, iteration) for iteration in range(7)] == pytest.approx(rates, abs=1e-6)
    assert learning_rate(spec, 100) == pytest.approx(rates[-1], abs=1e-6)


def test_a_gradient_that_is_not_this_parts_is_our_bug() -> None:
    parameters, optimizer = stage_and_optimizer()
    gradient = made_up_gradient(parameters, 0)
    name = next(iter(gradient))
    for wrong in ({n: g for n, g in gradient.items() if n != name}, {**gradient, name: gradient[name][:1]}):
        with pytest.raises(LocalProtocolError, match="not this part's"):
            optimizer.step(wrong, 0)
    assert optimizer.steps == 0


def test_a_peer_that_loads_a_state_goes_on_like_the_one_that_exported_it() -> None:
    parameters, optimizer = stage_and_optimizer(steps=3)
    state = export_state(parameters, optimizer)
    newcomer, newcomers_optimizer = stage_and_optimizer()
    assert state_hash(live_state(newcomer, newcomers_optimizer)) != state_hash(state)
    assert load_state(newcomer, newcomers_optimizer, state) == 3
    assert state_hash(live_state(newcomer, newcomers_optimizer)) == state_hash(state)
    for peers_parameters, peers_optimizer in ((parameters, optimizer), (newcomer, newcomers_optimizer)):
        peers_optimizer.step(made_up_gradient(peers_parameters, 9), 3)
    after = state_hash(live_state(parameters, optimizer))
    assert state_hash(live_state(newcomer, newcomers_optimizer)) == after != state_hash(state)


def test_a_state_can_be_handed_on_before_the_first_step() -> None:
    parameters, optimizer = stage_and_optimizer()
    newcomer, newcomers_optimizer = stage_and_optimizer(steps=2)
    assert load_state(newcomer, newcomers_optimizer, export_state(parameters, optimizer)) == 0
    assert state_hash(live_state(newcomer, newcomers_optimizer)) == state_hash(live_state(parameters, optimizer))


def test_an_exported_state_is_a_snapshot() -> None:
    parameters, optimizer = stage_and_optimizer(steps=1)
    state = export_state(parameters, optimizer)
    before = state_hash(state)
    optimizer.step(made_up_gradient(parameters, 5), 1)
    assert state_hash(state) == before


def test_the_hash_sees_every_bit_name_shape_and_dtype_but_not_the_order() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    different = [
        {"a": torch.zeros(2, 3), "b": torch.tensor(2)},
        {"a": torch.full((2, 3), -0.0), "b": torch.tensor(1)},
        {"a": torch.zeros(3, 2), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3), "c": torch.tensor(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3)},
    ]
    assert state_hash(dict(reversed(state.items()))) == state_hash(state)
    assert len({state_hash(other) for other in [state, *different]}) == 1 + len(different)


def test_a_donors_wrong_state_is_refused_whole() -> None:
    parameters, optimizer = stage_and_optimizer(steps=1)
    good = export_state(parameters, optimizer)
    name = next(name for name in good if name.startswith("first_moment/"))
    newcomer, newcomers_optimizer = stage_and_optimizer()
    before = state_hash(live_state(newcomer, newcomers_optimizer))
    for wrong, message in [
        ({n: t for n, t in good.items() if n != name}, "missing"),
        ({**good, "weights/extra": torch.zeros(1)}, "not a tensor of this part"),
        ({**good, name: good[name][:1]}, "expected"),
        ({**good, name: good[name].double()}, "expected"),
    ]:
        with pytest.raises(RemoteProtocolError, match=message):
            load_state(newcomer, newcomers_optimizer, wrong)
    assert state_hash(live_state(newcomer, newcomers_optimizer)) == before
