"""A microbatch counts once, when its backward is done, and nothing that was not counted leaves a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.device import resolve_device
from gwtf_p2p.training.compute.gradients import AlreadyCountedError, GradientSum, NotHeldError
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import build_whole_model
from tests.training.swarm import GPT2, LENGTH, LLAMA, MODELS, ROWS, Pipeline, assert_close, batch, microbatch, run_record

TIED_OR_NOT = pytest.mark.parametrize("model", ["llama", "gpt2_tied"])


def counted_sums(model: str, indices: list[int], config: ExecutorConfig | None = None) -> dict[str, Tensor]:
    pipeline = Pipeline(run_record(MODELS[model]), config)
    for index in indices:
        pipeline.train(microbatch(index), *batch(index))
    return pipeline.sums()


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


def assert_same(got: Payload, expected: Payload) -> None:
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@TIED_OR_NOT
def test_an_abandoned_forward_leaves_no_trace(model: str) -> None:
    pipeline = Pipeline(run_record(MODELS[model]))
    pipeline.forward(microbatch(9), batch(9)[0])
    pipeline.train(microbatch(0), *batch(0))
    for executor in pipeline.executors:
        assert executor.held == {microbatch(9)}
        executor.discard(microbatch(9))
        assert executor.held == frozenset()
        assert executor.counted == {microbatch(0)}
    assert_equal(pipeline.sums(), counted_sums(model, [0]))


def test_microbatches_interleave_as_they_come() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    first, second = (pipeline.forward(microbatch(index), batch(index)[0]) for index in (0, 1))
    for index, activations in ((1, second), (0, first)):
        _, gradient = pipeline.data.loss_and_gradient(microbatch(index), activations[-1], batch(index)[1])
        for stage in reversed(pipeline.stages):
            gradient = stage.backward(microbatch(index), gradient)
        pipeline.data.finish(microbatch(index), gradient)
    assert_equal(pipeline.sums(), counted_sums("llama", [1, 0]))


def test_a_failed_backward_leaves_no_trace_and_can_be_repeated() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    stage = pipeline.stages[1]
    trace = pipeline.train(microbatch(0), *batch(0))
    stage.reset_gradients()
    stage.forward(microbatch(0), trace.activations[1])

    def out_of_memory(_: Tensor) -> None:
        raise torch.OutOfMemoryError("no memory for this gradient")

    hook = next(iter(stage.part.parameters.values())).register_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        stage.backward(microbatch(0), trace.gradients[2])
    hook.remove()
    assert stage.counted == frozenset()
    assert all(not tensor.any() for tensor in stage.gradient_vector().tensors.values())
    assert_same(stage.backward(microbatch(0), trace.gradients[2]), trace.gradients[1])
    assert stage.counted == {microbatch(0)}


def test_a_second_backward_of_the_same_microbatch_is_an_error() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    trace = pipeline.train(microbatch(0), *batch(0))
    before = pipeline.sums()
    stage = pipeline.stages[0]
    stage.forward(microbatch(0), trace.activations[0])
    with pytest.raises(AlreadyCountedError):
        stage.backward(microbatch(0), trace.gradients[1])
    stage.discard(microbatch(0))
    with pytest.raises(AlreadyCountedError):
        pipeline.data.finish(microbatch(0), trace.gradients[0])
    with pytest.raises(AlreadyCountedError):
        pipeline.data.embed(microbatch(0), *batch(0))
    assert_equal(pipeline.sums(), before)


def test_the_same_index_of_another_data_peer_or_iteration_is_another_microbatch() -> None:
    stage = Pipeline(run_record(LLAMA)).stages[0]
    names = [microbatch(0), microbatch(0, iteration=1), microbatch(0, data_peer="data_1")]
    ones = (torch.ones(ROWS, LENGTH, LLAMA["hidden_size"]),)
    for name in names:
        stage.forward(name, ones)
        stage.backward(name, ones)
    assert stage.counted == set(names)


@TIED_OR_NOT
def test_recomputing_gives_the_same_gradients(model: str) -> None:
    expected = counted_sums(model, [0, 1])
    assert_equal(counted_sums(model, [0, 1], ExecutorConfig(recompute=True)), expected)

    pipeline = Pipeline(run_record(MODELS[model]))
    pipeline.train(microbatch(0), *batch(0))
    activations = pipeline.forward(microbatch(1), batch(1)[0])
    for stage in pipeline.stages:
        stage.drop_graph(microbatch(1))
    assert_same(pipeline.stages[0].recompute_forward(microbatch(1)), activations[1])
    _, gradient = pipeline.data.loss_and_gradient(microbatch(1), activations[-1], batch(1)[1])
    for stage in reversed(pipeline.stages):
        gradient = stage.backward(microbatch(1), gradient)
    pipeline.data.finish(microbatch(1), gradient)
    assert_equal(pipeline.sums(), expected)


def test_another_peer_of_the_stage_recomputes_the_same() -> None:
    """A backward crash: the replacement gets the stored activation and the stored output gradient."""
    run = run_record(GPT2)
    trace = Pipeline(run).train(microbatch(0), *batch(0))
    replacement = Pipeline(run).stages[1]
    assert_same(replacement.forward(microbatch(0), trace.activations[1]), trace.activations[2])
    assert_same(replacement.backward(microbatch(0), trace.gradients[2]), trace.gradients[1])


@TIED_OR_NOT
def test_uncount_takes_out_exactly_one_microbatch(model: str) -> None:
    pipeline = Pipeline(run_record(MODELS[model]))
    traces = [pipeline.train(microbatch(index), *batch(index)) for index in range(3)]
    trace = traces[1]
    pipeline.data.uncount(microbatch(1), batch(1), trace.activations[-1], trace.gradients[0])
    for number, stage in enumerate(pipeline.stages):
        stage.uncount(microbatch(1), trace.activations[number], trace.gradients[number + 1])
    for executor in pipeline.executors:
        assert executor.counted == {microbatch(0), microbatch(2)}
    assert_close(pipeline.sums(), counted_sums(model, [0, 2]), relative=2e-6)
    pipeline.train(microbatch(1), *batch(1))
    assert_close(pipeline.sums(), counted_sums(model, [0, 2, 1]), relative=2e-6)


def test_uncounting_all_microbatches_leaves_exact_zeros() -> None:
    pipeline = Pipeline(run_record(GPT2))
    traces = [pipeline.train(microbatch(index), *batch(index)) for index in range(3)]
    for index, trace in enumerate(traces):
        pipeline.data.uncount(microbatch(index), batch(index), trace.activations[-1], trace.gradients[0])
        for number, stage in enumerate(pipeline.stages):
            stage.uncount(microbatch(index), trace.activations[number], trace.gradients[number + 1])
    assert all(not tensor.any() for tensor in pipeline.sums().values())
    with pytest.raises(NotHeldError, match="not counted"):
        pipeline.stages[0].uncount(microbatch(0), traces[0].activations[0], traces[0].gradients[1])


def test_what_is_half_counted_is_in_no_average() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    activations = pipeline.forward(microbatch(0), batch(0)[0])
    pipeline.data.loss_and_gradient(microbatch(0), activations[-1], batch(0)[1])
    gradient = pipeline.data.gradient_vector()
    assert gradient.count == 0
    assert all(not tensor.any() for tensor in gradient.tensors.values())
    assert any(tensor.any() for tensor in pipeline.data._accumulator.export().tensors.values()), "the half is there"


@TIED_OR_NOT
def test_a_microbatch_withdrawn_after_its_loss_takes_its_head_gradient_along(model: str) -> None:
    pipeline = Pipeline(run_record(MODELS[model]))
    pipeline.train(microbatch(0), *batch(0))
    activations = pipeline.forward(microbatch(1), batch(1)[0])
    pipeline.data.loss_and_gradient(microbatch(1), activations[-1], batch(1)[1])
    counted = counted_sums(model, [0])
    assert_close(pipeline.sums(), counted, relative=2e-6)
    for executor in pipeline.executors:
        executor.discard(microbatch(1))
    assert_close(pipeline.sums(), counted_sums(model, [0]), relative=2e-6)
    pipeline.train(microbatch(1), *batch(1))
    assert pipeline.data.counted == {microbatch(0), microbatch(1)}


def test_the_loss_is_taken_once_and_before_the_finish() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    tokens_BT, labels_BT = batch(0)
    zeros = (torch.zeros(ROWS, LENGTH, LLAMA["hidden_size"]),)
    with pytest.raises(NotHeldError, match="not embedded"):
        pipeline.data.loss_and_gradient(microbatch(0), zeros, labels_BT)
    activations = pipeline.forward(microbatch(0), tokens_BT)
    assert_same(pipeline.data.embed(microbatch(0), tokens_BT), activations[0])
    with pytest.raises(NotHeldError, match="before its loss"):
        pipeline.data.finish(microbatch(0), zeros)
    pipeline.data.loss_and_gradient(microbatch(0), activations[-1], labels_BT)
    with pytest.raises(AlreadyCountedError, match="loss"):
        pipeline.data.loss_and_gradient(microbatch(0), activations[-1], labels_BT)


def test_a_backward_without_its_forward_is_our_bug() -> None:
    stage = Pipeline(run_record(LLAMA)).stages[0]
    with pytest.raises(NotHeldError):
        stage.backward(microbatch(0), (torch.zeros(ROWS, LENGTH, LLAMA["hidden_size"]),))


def test_a_wrong_shape_is_the_other_peers_fault_and_changes_nothing() -> None:
    pipeline = Pipeline(run_record(LLAMA))
    hidden = LLAMA["hidden_size"]
    activations = pipeline.forward(microbatch(0), batch(0)[0])
    expected = rf"expected \[\({ROWS}, {LENGTH}, {hidden}\)\]"
    with pytest.raises(RemoteProtocolError, match=expected):
        pipeline.stages[0].forward(microbatch(1), (torch.zeros(ROWS, LENGTH, hidden + 1),))
    with pytest.raises(RemoteProtocolError, match=expected):
        pipeline.stages[0].forward(microbatch(1), (*activations[0], *activations[0]))
    with pytest.raises(RemoteProtocolError, match=expected):
        pipeline.stages[0].backward(microbatch(0), (torch.zeros(ROWS, LENGTH + 1, hidden),))
    with pytest.raises(RemoteProtocolError, match=expected):
        pipeline.data.loss_and_gradient(microbatch(0), (activations[-1][0][:, 1:],), batch(0)[1])
    assert pipeline.stages[0].held == {microbatch(0)}
    assert all(not tensor.any() for tensor in pipeline.sums().values())


def test_reset_starts_an_iteration_with_nothing() -> None:
    pipeline = Pipeline(run_record(GPT2))
    pipeline.train(microbatch(0), *batch(0))
    pipeline.forward(microbatch(1), batch(1)[0])
    for executor in pipeline.executors:
        executor.reset_gradients()
        assert (executor.held, executor.counted) == (frozenset(), frozenset())
    pipeline.train(microbatch(0), *batch(0))
    assert_equal(pipeline.sums(), counted_sums("gpt2_tied", [0]))


@TIED_OR_NOT
def test_means_weighted_by_count_are_the_mean_over_all_microbatches(model: str) -> None:
    """Two peers per stage, one with two microbatches and one with one; hivemind averages means with weights."""
    run = run_record(MODELS[model])
    first, second = Pipeline(run), Pipeline(run)
    for pipeline, indices in ((first, [0, 2]), (second, [1])):
        for index in indices:
            pipeline.train(microbatch(index), *batch(index))
    averaged = {}
    for one, other in zip(first.executors, second.executors, strict=True):
        a, b = one.gradient_vector(), other.gradient_vector()
        assert (a.count, b.count) == (2, 1)
        mean_a, mean_b = a.mean(), b.mean()
        averaged |= {name: (mean_a[name] * a.count + mean_b[name] * b.count) / (a.count + b.count) for name in mean_a}
    together = {name: tensor / 3 for name, tensor in counted_sums(model, [0, 1, 2]).items()}
    assert_close(averaged, together, relative=2e-6)


def test_a_peer_without_microbatches_has_a_mean_of_zeros() -> None:
    mean = Pipeline(run_record(LLAMA)).stages[0].gradient_vector().mean()
    assert all(not tensor.any() for tensor in mean.values())


def test_a_leaving_peer_hands_over_its_sum() -> None:
    run = run_record(LLAMA)
    leaving, staying = Pipeline(run), Pipeline(run)
    leaving.train(microbatch(0), *batch(0))
    staying.train(microbatch(1), *batch(1))
    for giver, taker in zip(leaving.executors, staying.executors, strict=True):
        taker.load_gradient(giver.gradient_vector())
        assert taker.counted == {microbatch(0), microbatch(1)}
        with pytest.raises(AlreadyCountedError):
            taker.load_gradient(giver.gradient_vector())
    assert_close(staying.sums(), counted_sums("llama", [1, 0]), relative=2e-6)
    with pytest.raises(RemoteProtocolError, match="not this stage's"):
        staying.stages[0].load_gradient(GradientSum(leaving.stages[1].gradient_vector().tensors, frozenset()))


@TIED_OR_NOT
def test_bfloat16_rounds_the_products_and_keeps_float32_weights_and_gradients(model: str) -> None:
    run = run_record(MODELS[model])
    rounded, exact = Pipeline(run, ExecutorConfig(torch_dtype="bfloat16")), Pipeline(run)
    trace, exact_trace = (pipeline.train(microbatch(0), *batch(0)) for pipeline in (rounded, exact))
    assert {tensor.dtype for payload in (*trace.activations, *trace.gradients) for tensor in payload} == {torch.float32}
    sums, exact_sums = rounded.sums(), exact.sums()
    assert {tensor.dtype for tensor in sums.values()} == {torch.float32}
    assert not torch.equal(trace.activations[-1][0], exact_trace.activations[-1][0])
    assert trace.loss == pytest.approx(exact_trace.loss, rel=1e-2)
    assert_close(sums, exact_sums, relative=0.05)


@TIED_OR_NOT
def test_bfloat16_split_equals_bfloat16_unsplit(model: str) -> None:
    run = run_record(MODELS[model])
    tokens_BT, labels_BT = batch(0)
    whole = build_whole_model(run.model_config, run.seed)
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = whole(tokens_BT, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten())
    loss.backward()
    pipeline = Pipeline(run, ExecutorConfig(torch_dtype="bfloat16"))
    assert pipeline.train(microbatch(0), tokens_BT, labels_BT).loss == pytest.approx(loss.item(), rel=1e-6)
    # Where a graph is cut, a few bfloat16 roundings fall in another order.
    assert_close(pipeline.sums(), {name: p.grad for name, p in whole.named_parameters()}, relative=0.02)


def test_activations_may_arrive_in_bfloat16() -> None:
    stage = Pipeline(run_record(LLAMA)).stages[0]
    x_BTH = torch.randn(ROWS, LENGTH, LLAMA["hidden_size"], generator=torch.Generator().manual_seed(0)).bfloat16()
    assert_same(stage.forward(microbatch(0), (x_BTH,)), stage.forward(microbatch(1), (x_BTH.float(),)))
    assert stage.backward(microbatch(0), (x_BTH,))[0].dtype == torch.float32


def test_a_caller_without_gradients_enabled_still_trains() -> None:
    with torch.no_grad():
        sums = counted_sums("gpt2_tied", [0])
    assert_equal(sums, counted_sums("gpt2_tied", [0]))


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:x", "cuda:", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"--device: expected .*{name}"):
        resolve_device(name)


def test_an_unknown_compute_dtype_is_named() -> None:
    with pytest.raises(InputError, match="--torch_dtype: expected float32 or bfloat16, got 'float16'"):
        Pipeline(run_record(LLAMA), ExecutorConfig(torch_dtype="float16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("model", sorted(MODELS))
def test_cuda_agrees_with_the_cpu(model: str) -> None:
    on_cuda = {name: tensor.cpu() for name, tensor in counted_sums(model, [0, 1], ExecutorConfig(device="cuda")).items()}
    assert_close(on_cuda, counted_sums(model, [0, 1]), relative=1e-3)


@pytest.mark.parametrize("model", ["llama", "gpt2_tied"])
def test_a_gradient_that_is_not_finite_is_not_added_and_can_be_taken_out_again(model: str) -> None:
    pipeline = Pipeline(run_record(MODELS[model]))
    pipeline.train(microbatch(0), *batch(0))
    tokens, labels = batch(1)
    activations = pipeline.forward(microbatch(1), tokens)
    stage, nothing = pipeline.stages[-1], tuple(torch.full_like(tensor, torch.nan) for tensor in activations[-1])
    stage.backward(microbatch(1), nothing)
    pipeline.data.loss_and_gradient(microbatch(1), activations[-1], labels)
    pipeline.data.finish(microbatch(1), nothing)
    for executor in (stage, pipeline.data):
        assert executor.refused == {microbatch(1)} and microbatch(1) in executor.counted
    stage.uncount(microbatch(1), activations[-2], nothing)
    pipeline.data.uncount(microbatch(1), (tokens, labels), activations[-1], nothing)
    for executor in (stage, pipeline.data):
        assert not executor.refused and executor.counted == {microbatch(0)}
    assert_close(pipeline.sums(), counted_sums(model, [0]), relative=1e-5)
