"""PowerSGD: few bytes, equal bits for all members, and nothing lost for good."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.wire_loss import low_rank_reduce
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32, average_bytes
from gwtf_p2p.training.codecs.low_rank import LowRank, orthonormal, product

Floats = NDArray[np.float32]
SHAPES: list[tuple[int, ...]] = [(48, 40), (40,), (), (3, 20, 24), (4, 4), (0,)]
RANK = 4


def tensors_of(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.reshape(-1) for tensor in tensors]).norm())


def test_rank_32_of_a_model_1024_wide_is_at_most_8_percent_of_the_bytes() -> None:
    layer = [(1024, 1024)] * 4 + [(2816, 1024)] * 2 + [(1024, 2816), (1024,), (1024,)]
    for shapes in (layer, [(32000, 1024)]):
        full = average_bytes(shapes, "float32", 32)
        assert full == FLOAT32.encoded_bytes(sum(int(np.prod(shape)) for shape in shapes))
        assert average_bytes(shapes, "powersgd", 32) <= 0.08 * full


def test_what_is_counted_is_what_goes_into_the_two_rounds() -> None:
    plan, own = LowRank(tuple(SHAPES), RANK), tensors_of(0)
    first = plan.first(own.__getitem__, "name")
    bases = plan.bases(first)
    sent = [*first, *plan.second(own.__getitem__, bases)]
    assert sum(tensor.numel() for tensor in sent) * 4 == average_bytes(SHAPES, "powersgd", RANK)
    assert plan.products == (0, 3), "vectors and small matrices go as they are"


def test_columns_are_orthonormal_and_one_without_anything_of_its_own_is_zeros() -> None:
    columns = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    columns[:, 2] = 1e12 * columns[:, 0]
    columns[:, 3] *= 1e-30
    found = orthonormal(columns)
    expected = torch.eye(5)
    expected[2, 2] = 0
    torch.testing.assert_close(found.T @ found, expected, rtol=0, atol=1e-4)
    assert not orthonormal(torch.zeros(7, 3)).any()


def test_what_all_compute_for_themselves_is_single_float_operations_in_a_written_order() -> None:
    """The same steps in numpy have the same bits: no library's sum or matrix product is in them, which other processors do in
    another order."""
    columns = torch.randn(37, 6, generator=torch.Generator().manual_seed(2))
    other = torch.randn(11, 6, generator=torch.Generator().manual_seed(3))
    basis = orthonormal(columns)
    assert basis.numpy().tobytes() == _orthonormal(columns.numpy()).tobytes()
    total = np.zeros((37, 11), np.float32)
    for number in range(6):
        total = total + basis.numpy()[:, number : number + 1] * other.numpy()[:, number]
    assert product(basis, other).numpy().tobytes() == total.tobytes()
    assert product(basis.T.contiguous().T, other).numpy().tobytes() == total.tobytes()


def test_a_mean_of_matrices_of_low_rank_is_exact() -> None:
    generator = torch.Generator().manual_seed(4)
    own = [[torch.randn(30, 2, generator=generator) @ torch.randn(2, 20, generator=generator)] for _ in range(2)]
    plan = LowRank.of(own[0], 4)
    averaged, owed = low_rank_reduce(own, (1.0, 3.0), [[], []], plan, "name")
    torch.testing.assert_close(averaged[0], (own[0][0] + 3 * own[1][0]) / 4, rtol=1e-4, atol=1e-4)
    assert norm_of(owed[0] + owed[1]) < 1e-3


def test_averaged_again_and_again_nothing_is_lost_for_good() -> None:
    weights, members = (3.0, 1.0, 0.0), [tensors_of(seed) for seed in range(3)]
    exact = [(3.0 * members[0][k] + members[1][k]) / 4.0 for k in range(len(SHAPES))]
    plan = LowRank.of(members[0], RANK)
    owed: list[list[Tensor]] = [[], [], []]
    errors: list[float] = []
    total = [torch.zeros(shape) for shape in SHAPES]
    for attempt in range(150):
        averaged, owed = low_rank_reduce(members, weights, owed, plan, f"run/{attempt}")
        total = [tensor + mean for tensor, mean in zip(total, averaged, strict=True)]
        errors.append(norm_of([tensor / (attempt + 1) - mean for tensor, mean in zip(total, exact, strict=True)]))
    assert errors[-1] < errors[0] / 4
    torch.testing.assert_close(averaged[1], exact[1])


@pytest.mark.parametrize("shape", [(3,), (), (0,), (2, 2)])
def test_what_no_product_makes_smaller_goes_as_it_is(shape: tuple[int, ...]) -> None:
    plan = LowRank((shape,), 32)
    own = [torch.ones(shape)]
    first = plan.first(own.__getitem__, "name")
    assert plan.products == () and torch.equal(first[0], own[0])
    assert torch.equal(dict(plan.result(first, [], []))[0], own[0])


def _orthonormal(columns: Floats) -> Floats:
    rows = np.ascontiguousarray(columns.T)
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    for number in range(len(rows)):
        rows[number] = rows[number] / np.sqrt(_sums(rows[number : number + 1] * rows[number : number + 1])[0])
        after = rows[number + 1 :]
        along = _sums(after * rows[number])
        rows[number + 1 :] = after - along[:, None] * rows[number]
    found: Floats = np.ascontiguousarray(rows.T)
    return found


def _sums(rows: Floats) -> Floats:
    while rows.shape[1] > 1:
        half = (rows.shape[1] + 1) // 2
        low, high = rows[:, :half].copy(), rows[:, half:]
        low[:, : high.shape[1]] += high
        rows = low
    first: Floats = rows[:, 0]
    return first
