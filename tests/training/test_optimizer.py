"""Each part steps alone and gets the weights of the whole model's step; its state can be handed on and compared."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from gwtf_p2p.protocol.commit.attempt import norm_of
from gwtf_p2p.protocol.errors import InputError, LocalProtocolError, RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.protocol.wire.records import LossSpec, OptimizerSpec
from gwtf_p2p.training.compute.gradients import squared_norm
from gwtf_p2p.training.compute.loss import loss_of
from gwtf_p2p.training.compute.optimizer import NO_STATE, PartOptimizer, learning_rate
from gwtf_p2p.training.compute.updates import NEVER_NEGATIVE
from gwtf_p2p.training.compute.values import PIECE_VALUES, HeldGradient
from gwtf_p2p.training.model.split import PartSpec, build_stage_part, build_whole_model
from gwtf_p2p.training.state.replicas import Copy, take_over
from gwtf_p2p.training.state.tensors import (
    STEP,
    export_state,
    is_of_weights,
    live_state,
    load_moments,
    load_state,
    load_weights,
    most_state_bytes,
    state_hash,
)
from tests.training.swarm import LLAMA, MODELS, Pipeline, assert_close, batch, microbatch, run_record

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


def test_the_step_is_clipped_by_the_norm_it_is_told_and_the_callers_gradient_stays() -> None:
    spec = dataclasses.replace(SPEC, gradient_clip=1.0, schedule="constant", warmup_iterations=0, weight_decay=0.0)
    (clipped, optimizer), (_, reference) = stage_and_optimizer(spec), stage_and_optimizer(spec)
    gradient = made_up_gradient(clipped, 0)
    kept = {name: tensor.clone() for name, tensor in gradient.items()}
    assert optimizer.step(gradient, 0, gradient_norm=50.0).gradient_norm == 50.0
    assert all(torch.equal(gradient[name], kept[name]) for name in kept)
    reference.step({name: tensor / 50.0 for name, tensor in kept.items()}, 0, gradient_norm=0.5)  # under the limit
    found, expected = optimizer.state_tensors(), reference.state_tensors()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
@pytest.mark.parametrize("model", ["llama_tied", "gpt2_untied"])
def test_parts_clipped_by_the_commits_norm_are_the_whole_model_clipped_by_torch(model: str, kind: str) -> None:
    spec = dataclasses.replace(SPEC, kind=kind, gradient_clip=0.05, no_decay=("*embed*", "*wte*"))
    run = run_record(MODELS[model], optimizer=spec)
    whole = build_whole_model(run.model_config, run.seed)
    named = dict(whole.named_parameters())
    spared = [p for name, p in named.items() if p.dim() < 2 or "embed" in name or "wte" in name]
    decayed = [p for p in named.values() if not any(p is other for other in spared)]
    groups = [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    made = {"adamw": lambda: torch.optim.AdamW(groups, 1.0, (spec.beta1, spec.beta2), spec.epsilon)}
    reference = made[kind]() if kind in made else torch.optim.Adafactor(groups, 1.0)
    pipeline = Pipeline(run)
    optimizers = [PartOptimizer(executor.part.parameters, spec) for executor in pipeline.executors]
    for iteration in range(3):
        pipeline.train(microbatch(0, iteration), *batch(iteration))
        means = [executor.gradient_vector().mean() for executor in pipeline.executors]
        stages = {PeerId(f"peer {k}"): (Stage(k), squared_norm(HeldGradient(mean))) for k, mean in enumerate(means)}
        for optimizer, mean in zip(optimizers, means, strict=True):
            optimizer.step(mean, iteration, norm_of(stages))
        for executor in pipeline.executors:
            executor.reset_gradients()
        for name, gradient in [pair for mean in means for pair in mean.items()]:
            named[name].grad = gradient
        assert torch.nn.utils.clip_grad_norm_(named.values(), spec.gradient_clip).item() == pytest.approx(
            norm_of(stages), rel=1e-5
        )
        for group in reference.param_groups:
            group["lr"] = learning_rate(spec, iteration)
        reference.step()
    for executor in pipeline.executors:
        for name, parameter in executor.part.parameters.items():
            torch.testing.assert_close(parameter, named[name], rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_a_step_that_changes_nothing_but_the_version() -> None:
    parameters, optimizer = stage_and_optimizer(steps=2)
    before = {name: tensor.clone() for name, tensor in live_state(parameters, optimizer).items()}
    gradient = made_up_gradient(parameters, 3)
    next(iter(gradient.values())).flatten()[0] = float("inf")
    squared = squared_norm(HeldGradient(gradient))
    norm = norm_of({PeerId("a"): (Stage(0), 1.0), PeerId("b"): (Stage(1), squared)})
    assert (squared, norm) == (NOT_FINITE, NOT_FINITE)
    assert optimizer.step(gradient, 2, norm).skipped
    after = live_state(parameters, optimizer)
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["step"]
    assert optimizer.steps == 3


def test_a_rate_that_could_make_weights_that_are_not_finite_is_known_before_the_step() -> None:
    parameters, optimizer = stage_and_optimizer(steps=0)
    assert optimizer.stays_finite(0)
    wild = PartOptimizer(parameters, dataclasses.replace(SPEC, learning_rate=1e20, warmup_iterations=0))
    assert wild.stays_finite(0)
    wild.step(made_up_gradient(parameters, 1), 0, 1.0)
    assert all(parameter.isfinite().all() for parameter in parameters.values()), "large, but numbers"
    assert not wild.stays_finite(1)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adafactor"])
def test_a_part_without_trained_weights_steps_and_is_handed_on(kind: str) -> None:
    optimizer = PartOptimizer({}, dataclasses.replace(SPEC, kind=kind))
    optimizer.step({}, 0, gradient_norm=1.0)
    newcomer = PartOptimizer({}, dataclasses.replace(SPEC, kind=kind))
    assert load_state({}, newcomer, export_state({}, optimizer)) == 1 == newcomer.steps


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]),
    ],
)
@pytest.mark.parametrize("least", [0.0, 0.2])
def test_schedules(schedule: str, rates: list[float], least: float) -> None:
    falls = {"decay_iterations": 2} if schedule == "wsd" else {}
    spec = OptimizerSpec(
        learning_rate=1.0, schedule=schedule, warmup_iterations=2, total_iterations=6, min_learning_rate=least, **falls
    )
    spec.validate("")
    rates = [rate if number < 2 else least + (1 - least) * rate for number, rate in enumerate(rates)]
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


def test_weights_that_somebody_gives_are_refused_whole_or_taken_whole() -> None:
    parameters, optimizer = stage_and_optimizer(steps=2)
    good = export_state(parameters, optimizer)
    first, last = sorted(name for name in good if name.startswith("weights/"))[:: len(parameters) - 1]
    reader, readers_optimizer = stage_and_optimizer()
    before = state_hash(live_state(reader, readers_optimizer))
    nan = good[last].clone()
    nan.view(-1)[-1] = float("nan")
    for wrong, message in [
        ({n: t for n, t in good.items() if n != last}, "missing"),
        ({n: t for n, t in good.items() if n != "step"}, "step: missing"),
        ({**good, "step": torch.zeros(2, dtype=torch.int64)}, "step: expected"),
        ({**good, "step": torch.tensor(-1)}, "step: expected"),
        ({**good, last: good[last][:1]}, "expected"),
        ({**good, last: good[last].long()}, "expected"),
        ({**good, last: nan}, "finite"),
    ]:
        with pytest.raises(RemoteProtocolError, match=message):
            load_weights(reader, wrong)
    assert state_hash(live_state(reader, readers_optimizer)) == before
    assert load_weights(reader, good) == 2
    assert all(torch.equal(parameter, parameters[name]) for name, parameter in reader.items())
    assert first != last
    taken = sum(tensor.nbytes for tensor in good.values())
    assert taken <= most_state_bytes(parameters) < taken + (2 << 20)


def test_weights_alone_and_their_moments_after_them_make_the_whole_state() -> None:
    """Between the two a forward has been computed, whose graph is not disturbed."""
    parameters, optimizer = stage_and_optimizer(steps=2)
    good = export_state(parameters, optimizer)
    newcomer, newcomers_optimizer = stage_and_optimizer()
    weights = {name: tensor for name, tensor in good.items() if is_of_weights(name)}
    first = min(name for name in weights if name != "step")
    with pytest.raises(RemoteProtocolError, match="expected"):
        load_weights(newcomer, {**weights, first: weights[first][:1]}, newcomers_optimizer)
    assert newcomers_optimizer.steps == 0, "nothing has changed"
    assert load_weights(newcomer, weights, newcomers_optimizer) == 2
    assert newcomers_optimizer.steps == NO_STATE and newcomers_optimizer.weights_version == 2
    kept = {name: parameter._version for name, parameter in newcomer.items()}
    moment = next(name for name in sorted(good) if not is_of_weights(name))
    for wrong, message in [
        ({name: tensor for name, tensor in good.items() if name != moment}, "missing"),
        ({**good, "more": good["step"]}, "not a tensor of this part"),
        ({**good, moment: good[moment] * float("nan")}, "finite"),
    ]:
        with pytest.raises(RemoteProtocolError, match=message):
            load_moments(newcomer, newcomers_optimizer, wrong)
        assert newcomers_optimizer.steps == NO_STATE
    assert load_moments(newcomer, newcomers_optimizer, good) == 2
    assert state_hash(live_state(newcomer, newcomers_optimizer)) == state_hash(good)
    assert kept == {name: parameter._version for name, parameter in newcomer.items()}


def test_smoothing_and_z_loss_are_what_they_say_and_leave_tokens_without_a_label_out() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100], [4, -100, 0]])
    kept = labels != -100
    flat, wanted = logits[kept], labels[kept]
    logs = functional.log_softmax(flat, dim=-1)
    smoothed = -(0.9 * logs[torch.arange(4), wanted] + 0.1 * logs.mean(dim=-1)).mean()
    z = flat.exp().sum(dim=-1).log().square().mean()
    assert loss_of(logits, labels, LossSpec(z=0.3, label_smoothing=0.1)).item() == pytest.approx(
        (smoothed + 0.3 * z).item(), rel=1e-5
    )
    assert loss_of(logits, labels, LossSpec()).item() == pytest.approx(functional.cross_entropy(flat, wanted).item(), rel=1e-6)


@pytest.mark.parametrize("spec", [LossSpec(z=1e-2, label_smoothing=0.1)])
def test_a_split_runs_loss_and_gradients_with_all_additions_are_the_whole_models(spec: LossSpec) -> None:
    run = run_record(LLAMA, loss=spec)
    whole = build_whole_model(run.model_config, run.seed)
    tokens_BT, labels_BT = batch(0)
    loss = loss_of(whole(tokens_BT, use_cache=False).logits, labels_BT, spec)
    loss.backward()
    pipeline = Pipeline(run)
    assert pipeline.train(microbatch(0), tokens_BT, labels_BT).loss == pytest.approx(loss.item(), rel=1e-6)
    assert_close(pipeline.sums(), {name: p.grad for name, p in whole.named_parameters()}, relative=2e-6)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"min_learning_rate": 2.0}, "min_learning_rate"),
        ({"schedule": "wsd", "total_iterations": 5}, "decay_iterations"),
        ({"decay_iterations": 2}, "decay_iterations"),
        ({"schedule": "wsd", "total_iterations": 5, "warmup_iterations": 2, "decay_iterations": 4}, "decay_iterations"),
        ({"kind": "sgd"}, "kind"),
    ],
)
def test_a_recipe_that_does_not_fit_together_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=rf"optimizer\.{field}: expected"):
        OptimizerSpec(learning_rate=1.0, **changes).validate("file")  # type: ignore[arg-type]


def test_a_warm_up_without_an_end_is_a_recipe() -> None:
    OptimizerSpec(warmup_iterations=5).validate("file")


def test_a_warm_up_in_tokens_is_whole_iterations() -> None:
    spec = OptimizerSpec(warmup_tokens=1001)
    assert spec.in_iterations(100, "file").warmup_iterations == 11
    assert spec.in_iterations(100, "file").in_iterations(100, "file").warmup_iterations == 11
    with pytest.raises(InputError, match=r"optimizer\.warmup_iterations: expected it alone, or the 11 iterations"):
        dataclasses.replace(spec, warmup_iterations=5).in_iterations(100, "file")


@pytest.mark.parametrize("values", [1, 65_537, 2 * PIECE_VALUES, 2 * PIECE_VALUES + 13])
def test_a_step_in_pieces_has_the_bits_of_torchs_own(values: int) -> None:
    generator = torch.Generator().manual_seed(values)
    start = torch.randn(1, values, generator=generator)
    spec = OptimizerSpec(learning_rate=3e-3, weight_decay=0.1, gradient_clip=0.5)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = PartOptimizer({"w": ours}, spec)
    reference = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for iteration in range(3):
        gradient = torch.randn(1, values, generator=generator)
        norm = optimizer.step({"w": gradient}, iteration).gradient_norm
        theirs.grad = gradient * (0.5 / norm) if norm > 0.5 else gradient
        reference.step()
    assert torch.equal(ours, theirs)
    state = optimizer.state_tensors()
    assert torch.equal(state["first_moment/w"], reference.state[theirs]["exp_avg"])
    assert torch.equal(state["second_moment/w"], reference.state[theirs]["exp_avg_sq"])


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_what_an_update_takes_the_root_of_is_never_taken_for_negative(kind: str) -> None:
    """Neither from a state that somebody gives, nor in an average of copies to which somebody has brought it."""
    parameters, optimizer = stage_and_optimizer(dataclasses.replace(SPEC, kind=kind), steps=1)
    state = {name: tensor.clone() for name, tensor in live_state(parameters, optimizer).items()}
    roots = [name for name in state if name.startswith(NEVER_NEGATIVE)]
    assert roots
    for name in roots:
        state[name].view(-1)[0] = -100.0
    with pytest.raises(RemoteProtocolError, match=f"{min(roots)}: expected no negative numbers"):
        load_state(parameters, optimizer, state)
    gradient = HeldGradient(made_up_gradient(parameters, 1))
    average = Copy(gradient, HeldGradient({name: tensor for name, tensor in state.items() if name != STEP}))
    take_over(average, parameters, optimizer)
    optimizer.step(gradient, 1)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values())
