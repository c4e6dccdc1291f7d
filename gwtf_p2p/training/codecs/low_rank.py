"""Gradients as products of two thin matrices (PowerSGD, Vogels et al., arXiv 1905.13727), for averages over slow lines.

A matrix M (rows x columns) of each member is averaged in two rounds of which each is an ordinary average:

    P = mean of M_i S      rows x rank;  S are random signs, the same at all members
    U = orthonormal(P)     at every member, from the same bytes
    Q = mean of M_i^T U    columns x rank
    mean of M_i  ~  U Q^T

What a member's matrix has outside the columns of U is left over, and goes into its next average (error feedback). There is no
warm start from the last average's Q, so a newcomer, or an attempt in another group, needs nothing from before.

All members have to end with the same bits, on whatever processor. So whatever is computed *after* an average, and is to be
equal, is made of single additions, multiplications, divisions and roots of floats, which are rounded alike everywhere, in an
order that is written here: no matrix product, no library's sum. What goes *into* an average may be computed in any way.

Tensors that two thin matrices would not make smaller (vectors, small matrices) go through the first round as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gwtf_p2p.protocol.wire.tensor_formats import is_low_rank, matrix_of

_LEFT = 1e-8
"""Of a column's squared norm: a column of which no more is left, without its part along those before it, is rounding."""


Read = Callable[[int], Tensor]
"""One of a member's tensors, by its number: they need not be in memory all at once."""

Numbered = tuple[int, Tensor]


@dataclass(frozen=True, slots=True)
class LowRank:
    """How a list of tensors of these shapes is averaged."""

    shapes: tuple[tuple[int, ...], ...]
    rank: int

    @staticmethod
    def of(tensors: Sequence[Tensor], rank: int) -> LowRank:
        """For these tensors."""
        return LowRank(tuple(tuple(tensor.shape) for tensor in tensors), rank)

    @property
    def products(self) -> tuple[int, ...]:
        """Which of the tensors are sent as products."""
        return tuple(number for number, shape in enumerate(self.shapes) if is_low_rank(shape, self.rank))

    def first(self, read: Read, name: str) -> list[Tensor]:
        """What this member gives to the first round, which all call by the same name."""
        products, found = set(self.products), []
        for number in range(len(self.shapes)):
            tensor = read(number)
            if number in products:
                matrix = self._matrix(tensor)
                tensor = matrix @ _signs(matrix.shape[1], self.rank, f"{name}/{number}")
            found.append(tensor)
        return found

    def bases(self, firsts: Sequence[Tensor]) -> list[Tensor]:
        """Of the first round's results; equal bits for all that have equal ones."""
        return [orthonormal(firsts[number]) for number in self.products]

    def second(self, read: Read, bases: Sequence[Tensor]) -> list[Tensor]:
        """What this member gives to the second round."""
        return [self._matrix(read(number)).T @ basis for number, basis in zip(self.products, bases, strict=True)]

    def result(self, firsts: Sequence[Tensor], bases: Sequence[Tensor], seconds: Sequence[Tensor]) -> Iterator[Numbered]:
        """The averages, one by one, shaped as the tensors; equal bits for all that have equal ones of both rounds."""
        thin = {number: (basis, second) for number, basis, second in zip(self.products, bases, seconds, strict=True)}
        for number, first in enumerate(firsts):
            yield number, product(*thin[number]).view(self.shapes[number]) if number in thin else first

    def left_over(self, read: Read, bases: Sequence[Tensor], own: Sequence[Tensor]) -> Iterator[Numbered]:
        """What of this member's tensors is not in the average, of those of which anything is not; `own` is what it gave to the
        second round."""
        for number, basis, second in zip(self.products, bases, own, strict=True):
            yield number, read(number) - (basis @ second.T).view(self.shapes[number])

    def _matrix(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(matrix_of(tuple(tensor.shape)))


def orthonormal(columns: Tensor) -> Tensor:
    """The columns (rows x rank) one after the other without their parts along those before them, each of norm 1; one of which
    nothing is left is zeros. Made of single float operations in a fixed order (see the module)."""
    rows = columns.T.contiguous()
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, torch.ones_like(largest))
    before = _sums(rows * rows)
    for number in range(len(rows)):
        squared = _sums(rows[number : number + 1] * rows[number : number + 1])[0]
        if not float(squared) > _LEFT * float(before[number]):
            rows[number].zero_()
            continue
        rows[number] = rows[number] / torch.sqrt(squared).unsqueeze(0)
        after = rows[number + 1 :]
        if len(after):
            along = _sums(after * rows[number])
            after.sub_(along.unsqueeze(1) * rows[number])
    return rows.T.contiguous()


def product(basis: Tensor, second: Tensor) -> Tensor:
    """`basis` (rows x rank) times the transpose of `second` (columns x rank), added up in the order of the rank's columns."""
    total = torch.zeros(len(basis), len(second))
    term = torch.empty_like(total)
    for number in range(basis.shape[1]):
        torch.mul(basis[:, number : number + 1], second[:, number], out=term)
        total.add_(term)
    return total


def _sums(rows: Tensor) -> Tensor:
    """The sum of each row: of its halves, and so on."""
    while rows.shape[1] > 1:
        half = (rows.shape[1] + 1) // 2
        low, high = rows[:, :half].clone(), rows[:, half:]
        low[:, : high.shape[1]].add_(high)
        rows = low
    return rows[:, 0]


def _signs(rows: int, columns: int, name: str) -> Tensor:
    """Random signs as floats, the same for all that name them alike."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    drawn = torch.randint(0, 2, (rows, columns), generator=torch.Generator().manual_seed(seed))
    return drawn.mul_(2).sub_(1).float()
