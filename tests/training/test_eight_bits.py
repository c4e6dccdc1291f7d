"""AdamW with moments in eight bits: a quarter of their memory, the same course, equal bits for equal inputs, none of zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.wire.records import OptimizerSpec
from gwtf_p2p.training.compute.eight_bits import BLOCK_VALUES, LARGEST, LEAST, chances, decode, encode
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.values import PIECE_VALUES
from gwtf_p2p.training.state.tensors import export_state, live_state, load_state, state_hash

CPU = torch.device("cpu")
SPEC = OptimizerSpec("adamw_8bit", learning_rate=1e-2, weight_decay=0.1)


def drawn(values: int, seed: int = 0) -> Tensor:
    return torch.randn(values, generator=torch.Generator().manual_seed(seed))


def test_a_value_comes_back_within_a_step_and_on_average_as_it_is() -> None:
    values = drawn(3 * BLOCK_VALUES + 5) * 10 ** drawn(3 * BLOCK_VALUES + 5, 1).clamp(-2, 1)
    total = torch.zeros_like(values, dtype=torch.float64)
    for step in range(400):
        codes, scales = encode(values, chances(len(values), step, 0, CPU), never_zero=False)
        assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, values.shape, (4,))
        back = decode(codes, scales)
        least = scales.repeat_interleave(BLOCK_VALUES)[: len(values)] * LEAST
        assert ((back - values).abs() <= torch.maximum(values.abs() / 8, least) * 1.0001).all()
        total += back
    error = (total / 400 - values).abs() / torch.maximum(values.abs(), 4 * least)
    assert error.mean() < 0.005 and error.max() < 0.03, "rounding to the nearest would be off by 0.03 on average"


def test_only_zero_is_zero_where_it_divides() -> None:
    values = torch.tensor([0.0, 1e-30, 1e-9, 1.0, 3.0])
    codes, scales = encode(values, chances(5, 1, 0, CPU), never_zero=True)
    assert (decode(codes, scales) > 0).tolist() == [False, True, True, True, True]
    nothing, ones = encode(torch.zeros(300), chances(300, 1, 0, CPU), never_zero=True)
    assert not decode(nothing, ones).any() and (ones == 1).all()
    largest, _ = encode(torch.full((300,), LARGEST), chances(300, 1, 0, CPU), never_zero=True)
    assert (largest.view(torch.float8_e4m3fn).float() == LARGEST).all(), "rounded up it would be no number"


def test_chance_differs_by_step_and_moment_and_is_even() -> None:
    one, other, next_one = chances(1 << 16, 1, 0, CPU), chances(1 << 16, 1, 1, CPU), chances(1 << 16, 2, 0, CPU)
    assert torch.equal(one, chances(1 << 17, 1, 0, CPU)[: 1 << 16])
    for each in (other, next_one):
        assert abs(float(torch.corrcoef(torch.stack([one, each]).float())[0, 1])) < 0.02
    shares = torch.histc(one.float(), 16, 0, 1 << 20) / len(one)
    assert (shares - 1 / 16).abs().max() < 0.005


def trained(
    spec: OptimizerSpec, steps: int, shape: tuple[int, ...] = (70, 300)
) -> tuple[torch.nn.Parameter, PartOptimizer, float]:
    """A least-squares problem with a noisy gradient; its loss at the end."""
    goal, parameter = drawn(shape[0] * shape[1], 3).view(shape), torch.nn.Parameter(torch.zeros(shape))
    optimizer = PartOptimizer({"w": parameter}, spec)
    for step in range(steps):
        noise = 0.3 * drawn(goal.numel(), 100 + step).view(shape)
        optimizer.step({"w": parameter.detach() - goal + noise}, step)
    return parameter, optimizer, float((parameter.detach() - goal).square().mean())


def test_it_learns_as_with_float32() -> None:
    exact = trained(OptimizerSpec("adamw", learning_rate=1e-2), 300)[2]
    assert trained(OptimizerSpec("adamw_8bit", learning_rate=1e-2), 300)[2] < 1.1 * exact < 0.1


def test_equal_inputs_give_equal_bits_and_state_goes_on_where_it_was() -> None:
    shape = (5, PIECE_VALUES // 4)  # more than a piece
    (one, first, _), (other, second, _) = trained(SPEC, 3, shape), trained(SPEC, 3, shape)
    state = export_state({"w": one}, first)
    assert state_hash(state) == state_hash(live_state({"w": other}, second))
    assert sum(tensor.nbytes for name, tensor in state.items() if not name.startswith("weights/")) < 2.05 * one.numel()
    newcomer = torch.nn.Parameter(torch.ones(shape))
    third = PartOptimizer({"w": newcomer}, SPEC)
    assert load_state({"w": newcomer}, third, state) == 3
    for parameter, optimizer in ((one, first), (newcomer, third)):
        optimizer.step({"w": drawn(parameter.numel(), 9).view(shape)}, 3)
    assert state_hash(live_state({"w": newcomer}, third)) == state_hash(live_state({"w": one}, first))


def test_what_is_small_keeps_float32() -> None:
    parameter = torch.nn.Parameter(torch.ones(64))
    assert set(PartOptimizer({"n": parameter}, SPEC).state_tensors()) == {"first_moment/n", "second_moment/n"}


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_state_with_codes_of_no_number_is_refused(code: int) -> None:
    parameter, optimizer, _ = trained(SPEC, 1)
    state = export_state({"w": parameter}, optimizer)
    state["second_moment_root_8bit/w"].view(-1)[7] = code
    with pytest.raises(RemoteProtocolError, match="finite"):
        load_state({"w": parameter}, optimizer, state)
