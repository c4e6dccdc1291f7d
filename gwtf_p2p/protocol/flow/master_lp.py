"""The linear program behind several data peers' flows, over paths: a bounded primal simplex, the same on every machine.

Problem. Paths p, each of one data peer, with cost c_p. Choose x_p >= 0 that minimise sum (c_p - reward) x_p so that every row
(a data peer with its demand, a stage peer with its capacity, all flows together) carries at most its bound. `reward` exceeds
what any re-routing can cost, so the most flow comes first. Its value is the relaxation of the integral multi-commodity flow;
its dual prices tell `flow_columns` which paths are missing (column generation: Ford and Fulkerson 1958; Barnhart, Hane, Vance,
"Using branch-and-price-and-cut to solve origin-destination integer multicommodity flow problems", Operations Research, 2000).

Method. Primal simplex from the all-slack basis. A row whose slack is basic is loose, the others are tight. Only the tight
rows' columns of the basis inverse are kept, one per row of `_inverse`: the column of a loose row is a unit vector. A pivot
costs O(tight x rows). Dantzig's rule with ties to the lowest index; the leaving variable is the one with the largest pivot
among those that block first.

Same plan everywhere: floating point enters, so every operation is elementwise (IEEE exact) or a minimum. There is no dot
product, no BLAS and no summation whose order could differ between machines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.flow.min_cost import IntArray

FloatArray = npt.NDArray[np.float64]
Path = tuple[int, ...]
"""One index per layer 0..S + 1 of the problem; first and last are the same data peer."""

RowKey = tuple[int, int]
"""(layer, index in the layer); layer 0 holds the demand rows."""

_ALL: RowKey = (-1, 0)
"""The row of all flows together."""

_PIVOT_TOLERANCE = 1e-9
_ZERO = 1e-7
_LOOSE = -1
_PIVOT_WORK = 25_000
"""What a pivot costs besides the elements it changes, in elements."""


@dataclass(frozen=True, eq=False, slots=True)
class Prices:
    """Dual prices, all >= 0: `stage_peer[k - 1][i]` of the i-th stage peer of stage k, `data[d]` of data peer d's demand,
    `flow` of the number of flows."""

    stage_peer: tuple[FloatArray, ...]
    data: FloatArray
    flow: float


class PathMaster:
    """The restricted program over the paths added so far. `work` counts elements touched by pivots."""

    def __init__(self, bounds: tuple[IntArray, ...], most: int, reward: float) -> None:
        """`bounds[k]` are the demands (k = 0) or capacities of layer k, `most` bounds the number of flows."""
        self._bounds, self._most, self._reward = bounds, most, reward
        self._tolerance = max(1e-6, reward * 1e-13)
        self._row_of: dict[RowKey, int] = {}
        self.paths: list[Path] = []
        self._known: dict[Path, int] = {}
        self.work = 0
        self._path_rows: IntArray = np.zeros((64, len(bounds) + 1), dtype=np.int64)
        self._path_cost: FloatArray = np.zeros(64)
        self._basis: IntArray = np.zeros(64, dtype=np.int64)
        self._value: FloatArray = np.zeros(64)
        self._tight_index: IntArray = np.full(64, _LOOSE, dtype=np.int64)
        self._position: IntArray = np.zeros(64, dtype=np.int64)
        self._tight_rows: list[int] = []
        self._inverse: FloatArray = np.zeros((16, 64))
        self._dual: FloatArray = np.zeros(16)

    def add(self, path: Path, cost: int) -> bool:
        """Offer a path at its cost; False when it is known already."""
        if path in self._known:
            return False
        n = len(self.paths)
        if n == len(self._path_cost):
            self._path_rows = np.concatenate([self._path_rows, np.zeros_like(self._path_rows)])
            self._path_cost = np.concatenate([self._path_cost, np.zeros(n)])
        self._known[path] = n
        self.paths.append(path)
        self._path_rows[n] = [self._row(_ALL), *(self._row((k, i)) for k, i in enumerate(path[:-1]))]
        self._path_cost[n] = cost - self._reward
        return True

    def optimise(self, work_limit: int) -> bool:
        """Pivot until no known path or slack improves; False when the work limit or rounding stopped it before."""
        while True:
            reduced = self._reduced_costs()
            best_path = int(reduced.argmin()) if len(reduced) else -1
            path_gain = float(reduced[best_path]) if len(reduced) else 0.0
            duals = self._dual[: len(self._tight_rows)]
            best_slack = int(duals.argmax()) if len(duals) else -1
            slack_gain = -float(duals[best_slack]) if len(duals) else 0.0
            if min(path_gain, slack_gain) >= -self._tolerance:
                return True
            if self.work > work_limit:
                return False
            if path_gain <= slack_gain:
                entered = self._enter(self._path_column(best_path), path_gain, best_path)
            else:
                column = self._inverse[best_slack, : len(self._row_of)].copy()
                entered = self._enter(column, slack_gain, ~self._tight_rows[best_slack])
            if not entered:
                return False

    def solution(self) -> list[tuple[Path, float]]:
        """The paths in use with their amounts, in ascending order of path."""
        rows = len(self._row_of)
        used = ((self._basis[:rows] >= 0) & (self._value[:rows] > _ZERO)).nonzero()[0]
        return sorted((self.paths[int(self._basis[r])], float(self._value[r])) for r in used)

    def prices(self) -> Prices:
        """The duals of the present basis, negative rounding dust cut off."""
        layers, flow = [np.zeros(len(b)) for b in self._bounds], 0.0
        for (layer, index), row in self._row_of.items():
            tight = self._tight_index[row]
            if tight == _LOOSE:
                continue
            price = max(0.0, -float(self._dual[tight]))
            if layer < 0:
                flow = price
            else:
                layers[layer][index] = price
        return Prices(tuple(layers[1:]), layers[0], flow)

    def _row(self, key: RowKey) -> int:
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of[key] = len(self._row_of)
            if row == len(self._value):
                self._grow_rows(2 * row)
            bound = self._most if key == _ALL else self._bounds[key[0]][key[1]]
            self._basis[row], self._value[row], self._position[row] = ~row, bound, row
        return row

    def _grow_rows(self, size: int) -> None:
        extra = size - len(self._value)
        self._value = np.concatenate([self._value, np.zeros(extra)])
        self._basis = np.concatenate([self._basis, np.zeros(extra, dtype=np.int64)])
        self._position = np.concatenate([self._position, np.zeros(extra, dtype=np.int64)])
        self._tight_index = np.concatenate([self._tight_index, np.full(extra, _LOOSE, dtype=np.int64)])
        self._inverse = np.concatenate([self._inverse, np.zeros((len(self._inverse), extra))], axis=1)

    def _reduced_costs(self) -> FloatArray:
        """Of all known paths. Summed row by row, in the paths' own order of layers."""
        n = len(self.paths)
        dual_of_row = np.zeros(len(self._row_of))
        dual_of_row[self._tight_rows] = self._dual[: len(self._tight_rows)]
        reduced = self._path_cost[:n].copy()
        for layer in range(self._path_rows.shape[1]):
            reduced -= dual_of_row[self._path_rows[:n, layer]]
        return reduced

    def _path_column(self, path: int) -> FloatArray:
        column = np.zeros(len(self._row_of))
        for row in self._path_rows[path].tolist():
            tight = self._tight_index[row]
            if tight == _LOOSE:
                column[self._position[row]] += 1.0
            else:
                column += self._inverse[tight, : len(column)]
        return column

    def _enter(self, column: FloatArray, gain: float, variable: int) -> bool:
        """Bring `variable` (a path, or ~row for a slack) into the basis; `column` is its column in terms of the basis.

        False if nothing blocks it: every row is bounded, so that can only be rounding, and the basis is kept."""
        rising = (column > _PIVOT_TOLERANCE).nonzero()[0]
        if len(rising) == 0:
            return False
        ratios = np.maximum(self._value[rising], 0.0) / column[rising]
        step = float(ratios.min())
        blocking = rising[ratios <= step + _PIVOT_TOLERANCE]
        leaves = int(blocking[column[blocking].argmax()])
        rows, tight, pivot = len(column), len(self._tight_rows), float(column[leaves])
        self._value[:rows] -= step * column
        self._value[leaves] = step
        factors = self._inverse[:tight, leaves] / pivot
        self._dual[:tight] += gain * factors
        touched = factors.nonzero()[0]
        self._inverse[touched, :rows] -= np.multiply.outer(factors[touched], column)
        self._inverse[:tight, leaves] = factors
        self.work += len(touched) * rows + _PIVOT_WORK
        leaving = int(self._basis[leaves])
        self._basis[leaves] = variable
        if variable < 0:
            self._loosen(~variable, leaves)
        if leaving < 0:
            self._tighten(~leaving, column, leaves, gain)
        return True

    def _loosen(self, row: int, position: int) -> None:
        """The slack of a tight row became basic: its column of the inverse is a unit vector from now on."""
        gap, last = int(self._tight_index[row]), len(self._tight_rows) - 1
        moved = self._tight_rows[last]
        self._tight_rows[gap], self._tight_index[moved] = moved, gap
        self._inverse[gap], self._dual[gap] = self._inverse[last], self._dual[last]
        self._tight_rows.pop()
        self._tight_index[row], self._position[row] = _LOOSE, position
        self._inverse[last], self._dual[last] = 0.0, 0.0

    def _tighten(self, row: int, column: FloatArray, position: int, gain: float) -> None:
        """The slack of a loose row left the basis."""
        tight = len(self._tight_rows)
        if tight == len(self._inverse):
            self._inverse = np.concatenate([self._inverse, np.zeros_like(self._inverse)])
            self._dual = np.concatenate([self._dual, np.zeros(tight)])
        pivot = column[position]
        self._inverse[tight] = 0.0
        self._inverse[tight, : len(column)] = column / -pivot
        self._inverse[tight, position] = 1.0 / pivot
        self._dual[tight] = gain / pivot
        self._tight_index[row] = tight
        self._tight_rows.append(row)
