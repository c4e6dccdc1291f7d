"""Exact minimum-cost maximum flow with peer capacities on a layered graph, in integers.

Problem. Layers 0..L of points; point p carries at most capacity[p] units; an arc leads from each point i of layer k to each
point j of layer k+1 for which a cost c(i,j) >= 0 is given, without a bound of its own. A unit of flow visits one point per
layer. Of all integral flows of at most `limit` units take those with the most units, and of those the cheapest.
With one data peer, layers 0 and L are that peer (capacity: its demand) and the layers between are the stages.

Optimality. Split each point into two sides, entry and exit. The residual graph has the arcs exit(i) -> entry(j) at cost
c(i,j), entry(p) -> exit(p) at cost 0 while p has spare capacity, and the reverse of whatever carries flow at the opposite
cost. A flow is the cheapest of its value exactly if potentials exist under which no residual arc has a negative reduced
cost; it is the largest exactly if the sides that the residual graph reaches from the source form a cut which the flow fills.
The result carries the potentials (`to_sink`); `flow_certificate.violations` checks them and the cut.

Algorithm. Successive shortest paths (Jewell 1958; Busacker and Gowen 1960; Ahuja, Magnanti, Orlin, "Network Flows", 1993,
section 9.7), each found by label-correcting sweeps: forward through the layers by min-plus products with rows of the cost
matrices, backward along the few reversed arcs, forward again from the points whose label fell. `to_sink`, a consistent lower
bound of what is left to the sink, directs the search (A*, Hart, Nilsson, Raphael 1968): a point whose label plus bound
exceeds a threshold is postponed, and the threshold rises until the sink's label lies under it. After each augmentation the
bounds are raised by the search's own labels (the primal-dual potential update with early termination).
Complexity O(F A) for F units and A arcs, plus corrections; at worst O(F A P) for P points. The pruning makes the usual
augmentation touch a small part of A.

Ties go to the lowest index, so with peers sorted by id equal inputs give equal flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Arc = tuple[int, int]
"""(point of layer k, point of layer k + 1)"""

NO_ARC = 1 << 60
"""Cost of an arc that does not exist, and label of a side that is not reached."""

FAR = 1 << 59
"""Labels from here on count as unreached (NO_ARC less some residual cost); real path costs stay far below."""

_FROM_SOURCE, _THROUGH = -1, -2


class FlowStatus(Enum):
    """Why the solver stopped."""

    LIMIT_REACHED = "all flows asked for are routed"
    CUT_FILLED = "no further flow fits: a cut is full"
    EMPTY = "no path with spare capacity exists"


@dataclass(frozen=True, eq=False, slots=True)
class LayeredNetwork:
    """`capacities[k]` has one entry per point of layer k; `costs[k][i, j]` is the cost from point i of layer k to point j of
    layer k+1, NO_ARC where there is no arc. All int64."""

    capacities: tuple[IntArray, ...]
    costs: tuple[IntArray, ...]

    @property
    def last(self) -> int:
        """Index L of the last layer."""
        return len(self.costs)

    @staticmethod
    def of(capacities: Sequence[npt.ArrayLike], costs: Sequence[npt.ArrayLike]) -> LayeredNetwork:
        """Raises ValueError when the shapes do not fit."""
        network = LayeredNetwork(
            tuple(np.asarray(c, dtype=np.int64) for c in capacities), tuple(np.asarray(c, dtype=np.int64) for c in costs)
        )
        sizes = [len(c) for c in network.capacities]
        expected, shapes = list(pairwise(sizes)), [c.shape for c in network.costs]
        if not expected or expected != shapes:
            raise ValueError(f"costs: expected shapes {expected}, got {shapes}")
        return network


@dataclass(frozen=True, eq=False, slots=True)
class Potentials:
    """A lower bound of the residual cost from each side of each point to the sink; NO_ARC where no path ever led there."""

    entry: tuple[IntArray, ...]
    exit: tuple[IntArray, ...]

    def prices(self) -> tuple[IntArray, ...]:
        """What one more unit of each point's capacity would save at most: the dual price, 0 where capacity is spare."""
        finite = [(np.minimum(a, FAR), np.minimum(b, FAR)) for a, b in zip(self.entry, self.exit, strict=True)]
        return tuple(np.where(a < FAR, np.maximum(a - b, 0), 0) for a, b in finite)


@dataclass(frozen=True, eq=False, slots=True)
class FlowResult:
    """`arcs[k]` maps (i, j) to the units from point i of layer k to point j of layer k+1, none of them zero.

    `marginal_costs[u]` is what unit u added to the cost; it never falls from one unit to the next."""

    status: FlowStatus
    units: int
    cost: int
    arcs: tuple[dict[Arc, int], ...]
    marginal_costs: tuple[int, ...]
    to_sink: Potentials

    def paths(self) -> list[tuple[int, ...]]:
        """The flow taken apart into one path per unit (a point index per layer), in ascending order."""
        onward: list[dict[int, list[int]]] = []
        for layer in self.arcs:
            receivers: dict[int, list[int]] = {}
            for (i, j), units in sorted(layer.items()):
                receivers.setdefault(i, []).extend([j] * units)
            onward.append(receivers)
        paths: list[tuple[int, ...]] = []
        for start in sorted(onward[0]):
            for first in onward[0][start]:
                path = [start, first]
                for receivers in onward[1:]:
                    path.append(receivers[path[-1]].pop(0))
                paths.append(tuple(path))
        return sorted(paths)


def solve(network: LayeredNetwork, limit: int) -> FlowResult:
    """The largest flow of at most `limit` units, the cheapest among those."""
    residual = _Residual(network)
    marginal: list[int] = []
    while len(marginal) < limit:
        distance, units = residual.augment(limit - len(marginal))
        if units == 0:
            break
        marginal.extend([distance] * units)
    if len(marginal) >= limit:
        status = FlowStatus.LIMIT_REACHED
    else:
        status = FlowStatus.CUT_FILLED if marginal else FlowStatus.EMPTY
    potentials = Potentials(tuple(residual.to_sink_entry), tuple(residual.to_sink_exit))
    return FlowResult(status, len(marginal), sum(marginal), residual.arcs, tuple(marginal), potentials)


class _StepKind(Enum):
    THROUGH = "entry to exit of a point"
    BACK_THROUGH = "exit to entry: less through the point"
    ALONG = "to the next layer"
    BACK_ALONG = "to the previous layer: less on the arc"


@dataclass(frozen=True, slots=True)
class _Step:
    """One residual arc of an augmenting path: point `i` of `layer`, or the arc from there to point `j` of the next."""

    kind: _StepKind
    layer: int
    i: int
    j: int = -1


class _Residual:
    """A flow, what it leaves, and the bounds that direct the next search; private to one solve."""

    def __init__(self, network: LayeredNetwork) -> None:
        self.network = network
        self.arcs: tuple[dict[Arc, int], ...] = tuple({} for _ in network.costs)
        self.load = [np.zeros(len(c), dtype=np.int64) for c in network.capacities]
        self._arrays: list[tuple[IntArray, IntArray, IntArray] | None] = [None] * network.last
        self.to_sink_entry, self.to_sink_exit = distances_to_sink(network)

    def arc_arrays(self, layer: int) -> tuple[IntArray, IntArray, IntArray]:
        """Senders, receivers and costs of a layer's arcs that carry flow, in ascending order."""
        arrays = self._arrays[layer]
        if arrays is None:
            pairs = np.array(sorted(self.arcs[layer]), dtype=np.int64).reshape(-1, 2)
            arrays = pairs[:, 0], pairs[:, 1], self.network.costs[layer][pairs[:, 0], pairs[:, 1]]
            self._arrays[layer] = arrays
        return arrays

    def augment(self, most: int) -> tuple[int, int]:
        """Send up to `most` units along one shortest path; returns (cost per unit, units), units 0 when none exists."""
        search = _Search(self)
        end, distance = search.run()
        if distance >= FAR:
            return 0, 0
        for layer in range(self.network.last + 1):
            np.maximum(self.to_sink_entry[layer], distance - search.entry[layer], out=self.to_sink_entry[layer])
            np.maximum(self.to_sink_exit[layer], distance - search.exit[layer], out=self.to_sink_exit[layer])
        steps = search.trace(end)
        units = min(most, *(self._room(step) for step in steps))
        for step in steps:
            self._push(step, units)
        return distance, units

    def _room(self, step: _Step) -> int:
        match step.kind:
            case _StepKind.THROUGH:
                return int(self.network.capacities[step.layer][step.i] - self.load[step.layer][step.i])
            case _StepKind.BACK_THROUGH:
                return int(self.load[step.layer][step.i])
            case _StepKind.BACK_ALONG:
                return self.arcs[step.layer][step.i, step.j]
            case _StepKind.ALONG:
                return NO_ARC

    def _push(self, step: _Step, units: int) -> None:
        if step.kind is _StepKind.THROUGH:
            self.load[step.layer][step.i] += units
        elif step.kind is _StepKind.BACK_THROUGH:
            self.load[step.layer][step.i] -= units
        else:
            self._arrays[step.layer] = None
            layer, arc = self.arcs[step.layer], (step.i, step.j)
            layer[arc] = layer.get(arc, 0) + (units if step.kind is _StepKind.ALONG else -units)
            if layer[arc] == 0:
                del layer[arc]


class _Search:
    """Labels: distances from the source to the entry and exit of every point, with the predecessor that gave each."""

    def __init__(self, residual: _Residual) -> None:
        self.residual, self.network = residual, residual.network
        sizes = [len(c) for c in self.network.capacities]
        self.entry = [np.full(n, NO_ARC, dtype=np.int64) for n in sizes]
        self.exit = [np.full(n, NO_ARC, dtype=np.int64) for n in sizes]
        self._entry_from = [np.full(n, _FROM_SOURCE, dtype=np.int64) for n in sizes]
        self._exit_from = [np.full(n, _FROM_SOURCE, dtype=np.int64) for n in sizes]
        self._pending = [np.zeros(n, dtype=np.bool_) for n in sizes]
        self._open = [load < c for load, c in zip(residual.load, self.network.capacities, strict=True)]
        self.entry[0][:] = 0

    def run(self) -> tuple[int, int]:
        """(point of the last layer, distance to the sink through it); a distance of NO_ARC or so when there is none."""
        base = int(self.residual.to_sink_entry[0].min(initial=NO_ARC))
        threshold = base + (base >> 6)
        while True:
            self._settle(threshold)
            ends = np.where(self._open[-1], self.exit[-1], NO_ARC)
            distance = int(ends.min(initial=NO_ARC))
            lowest = self._lowest_pending()
            if distance <= threshold or lowest >= FAR:
                return (int(ends.argmin()) if distance < FAR else -1), distance
            threshold = max(lowest, min(distance, base + 2 * (threshold - base)))

    def _lowest_pending(self) -> int:
        bounds = [
            (self.exit[k][pending] + self.residual.to_sink_exit[k][pending]).min(initial=NO_ARC)
            for k, pending in enumerate(self._pending)
        ]
        return int(min(bounds))

    def _settle(self, threshold: int) -> None:
        while True:
            self._sweep_forward(threshold)
            if not self._sweep_backward():
                return

    def _sweep_forward(self, threshold: int) -> None:
        for layer in range(self.network.last + 1):
            if layer > 0:
                self._relax_arcs(layer - 1, threshold)
            points = ((self.entry[layer] < self.exit[layer]) & self._open[layer]).nonzero()[0]
            self.exit[layer][points] = self.entry[layer][points]
            self._exit_from[layer][points] = _THROUGH
            if layer < self.network.last:
                self._pending[layer][points] = True

    def _relax_arcs(self, layer: int, threshold: int) -> None:
        """From the pending points of `layer` under the threshold to the entries of the next layer."""
        labels, pending = self.exit[layer], self._pending[layer]
        senders = (pending & (labels + self.residual.to_sink_exit[layer] <= threshold)).nonzero()[0]
        if len(senders) == 0:
            return
        pending[senders] = False
        costs = self.network.costs[layer]
        through = (costs if len(senders) == len(labels) else costs[senders]) + labels[senders, None]
        value = through.min(axis=0)
        receivers = (value < np.minimum(self.entry[layer + 1], FAR)).nonzero()[0]
        self.entry[layer + 1][receivers] = value[receivers]
        self._entry_from[layer + 1][receivers] = senders[through[:, receivers].argmin(axis=0)]

    def _sweep_backward(self) -> bool:
        """Relax the reversed arcs of the flow, last layer first; returns whether any exit label fell."""
        any_fell = False
        for layer in range(self.network.last - 1, -1, -1):
            senders, receivers, costs = self.residual.arc_arrays(layer)
            entry_after, exit_after, exits = self.entry[layer + 1], self.exit[layer + 1], self.exit[layer]
            lower = receivers[exit_after[receivers] < entry_after[receivers]]
            entry_after[lower] = exit_after[lower]
            self._entry_from[layer + 1][lower] = _THROUGH
            labels = entry_after[receivers] - costs
            fell = ((labels < exits[senders]) & (entry_after[receivers] < FAR)).nonzero()[0]
            for arc in fell.tolist():
                i = senders[arc]
                if labels[arc] < exits[i]:
                    exits[i] = labels[arc]
                    self._exit_from[layer][i] = receivers[arc]
                    self._pending[layer][i] = any_fell = True
        return any_fell

    def trace(self, end: int) -> list[_Step]:
        """The steps of the shortest path to the exit of point `end` of the last layer, last step first."""
        steps: list[_Step] = []
        layer, point, at_exit = self.network.last, end, True
        while True:
            origin = int((self._exit_from if at_exit else self._entry_from)[layer][point])
            if origin == _FROM_SOURCE:
                return steps
            if origin == _THROUGH:
                steps.append(_Step(_StepKind.THROUGH if at_exit else _StepKind.BACK_THROUGH, layer, point))
            elif at_exit:
                steps.append(_Step(_StepKind.BACK_ALONG, layer, point, origin))
                layer, point = layer + 1, origin
            else:
                layer, point, receiver = layer - 1, origin, point
                steps.append(_Step(_StepKind.ALONG, layer, point, receiver))
            at_exit = not at_exit


def distances_to_sink(network: LayeredNetwork) -> tuple[list[IntArray], list[IntArray]]:
    """Least cost from each entry and exit to the end of the last layer when nothing flows yet (NO_ARC: no path)."""
    exits: list[IntArray] = [np.zeros(len(network.capacities[-1]), dtype=np.int64)]
    entries: list[IntArray] = []
    for layer in range(network.last, -1, -1):
        entries.append(np.where(network.capacities[layer] > 0, exits[-1], NO_ARC))
        if layer > 0:
            onward = network.costs[layer - 1] + entries[-1]
            exits.append(np.minimum(onward.min(axis=1, initial=NO_ARC), NO_ARC))
    return entries[::-1], exits[::-1]
