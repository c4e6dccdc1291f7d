"""A routing problem: who can carry how much, and what each hop costs. Router, CLI and simulator plan on nothing else.

It comes from a view (`problem_of_view`) or from a problem file (`problem_file.parse_problem`). Peers are sorted by id, costs
are integers and the peers' order in the source does not matter, so equal inputs give equal plans.

Layers: 0 and S + 1 are the data peers (a flow leaves and returns to the same one), 1..S the stages. `costs_us[k][i, j]` is the
cost of the hop from the i-th peer of layer k to the j-th of layer k + 1, `NO_ARC` where there is no link. A hop's cost counts
once per flow and covers both passes (see `costs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.flow.min_cost import NO_ARC, IntArray, LayeredNetwork
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.hop_cost import MICROSECONDS
from gwtf_p2p.protocol.view.network_view import ASSUMED_BANDWIDTH_BYTES_PER_S, NetworkView, usual_of

MAX_COST_US = 1 << 40
"""Twelve days. With at most `MAX_STAGES` stages no path cost comes near `flow.FAR`."""
MAX_STAGES = 1000
MAX_CAPACITY = 1 << 30


@dataclass(frozen=True, slots=True, order=True)
class DataPeer:
    """`demand`: the most flows that it keeps in use at once."""

    peer: PeerId
    demand: int


@dataclass(frozen=True, slots=True, order=True)
class StagePeer:
    """`capacity`: the most flows through it."""

    peer: PeerId
    capacity: int


@dataclass(frozen=True, eq=False)
class Problem:
    """`stage_peers[k - 1]` are the stage peers of stage k. Sorted by id throughout; see the module docstring for `costs_us`."""

    name: str
    data_peers: tuple[DataPeer, ...]
    stage_peers: tuple[tuple[StagePeer, ...], ...]
    costs_us: tuple[IntArray, ...]

    def __post_init__(self) -> None:
        sizes = [len(layer) for layer in self.layers]
        shapes = [c.shape for c in self.costs_us]
        assert shapes == list(pairwise(sizes)), f"costs_us of shapes {shapes} for layers of {sizes} peers"
        assert all(list(layer) == sorted(layer) for layer in self.layers), "peers are not sorted"

    @property
    def stages(self) -> int:
        """Number of stage peer stages S."""
        return len(self.stage_peers)

    @cached_property
    def layers(self) -> tuple[tuple[PeerId, ...], ...]:
        """Peer ids of layers 0..S + 1."""
        data = tuple(d.peer for d in self.data_peers)
        return (data, *(tuple(r.peer for r in stage) for stage in self.stage_peers), data)

    @cached_property
    def capacities(self) -> tuple[IntArray, ...]:
        """Demand or capacity of each peer of layers 0..S + 1."""
        demand = np.array([d.demand for d in self.data_peers], dtype=np.int64)
        return (demand, *(np.array([r.capacity for r in stage], dtype=np.int64) for stage in self.stage_peers), demand)

    @property
    def demand(self) -> int:
        """Flows that all data peers together would use."""
        return sum(d.demand for d in self.data_peers)

    @cached_property
    def position(self) -> dict[PeerId, tuple[int, int]]:
        """(layer, index in the layer) of each peer; data peers are in layer 0."""
        return {peer: (k, i) for k, layer in enumerate(self.layers[:-1]) for i, peer in enumerate(layer)}

    def network(self) -> LayeredNetwork:
        """All data peers taken as one source and one sink: exact for one data peer, a relaxation for several, since a flow
        may then return to another data peer than the one that it left."""
        return LayeredNetwork(self.capacities, self.costs_us)

    def path_cost_us(self, path: tuple[int, ...]) -> int:
        """Cost of a path given as one index per layer 0..S + 1; NO_ARC or more when a link is missing."""
        return sum(int(c[i, j]) for c, i, j in zip(self.costs_us, path, path[1:], strict=False))


def problem_of_view(view: NetworkView, name: str = "view") -> Problem:
    """The records' problem: an ONLINE data peer's capacity is its demand, hops cost what `NetworkView.hop_cost_us` says."""
    layers = [view.peers_of_stage(Stage(k)) for k in (*range(view.stages + 1), 0)]
    data = tuple(DataPeer(p, max(0, view.records[p].capacity)) for p in layers[0])
    stage_peers = tuple(tuple(StagePeer(p, max(0, view.records[p].capacity)) for p in layer) for layer in layers[1:-1])
    costs = tuple(hop_costs_us(view, a, b) for a, b in pairwise(layers))
    return Problem(name, data, stage_peers, costs)


def hop_costs_us(view: NetworkView, senders: tuple[PeerId, ...], receivers: tuple[PeerId, ...]) -> IntArray:
    """`NetworkView.hop_cost_us` of every sender (rows) to every receiver (columns), computed at once.

    The operations are those of `costs.hop_cost_us` in their order, so the costs are equal to the microsecond; a view of 1,000
    stage peers takes a fraction of a second instead of several.
    """
    ours, theirs = ([usual_of(view, p) for p in side] for side in (senders, receivers))
    slower = np.minimum.outer(*([usual.bandwidth_bytes_per_s for usual in side] for side in (ours, theirs)))
    forth_bandwidth = np.where(np.isinf(slower), ASSUMED_BANDWIDTH_BYTES_PER_S, slower)
    back_bandwidth = forth_bandwidth.copy()
    forth_latency = np.add.outer(*([usual.latency_s for usual in side] for side in (ours, theirs))) / 2
    back_latency = forth_latency.copy()
    for i, j in _measured_pairs(view, senders, receivers):
        forth, back = view.link(senders[i], receivers[j]), view.link(receivers[j], senders[i])
        forth_latency[i, j], forth_bandwidth[i, j] = forth.latency_s, forth.bandwidth_bytes_per_s
        back_latency[i, j], back_bandwidth[i, j] = back.latency_s, back.bandwidth_bytes_per_s
    both_ways_bytes = sum(view.hop_bytes(senders[0], receivers[0])) if senders and receivers else 0
    compute = [np.array([(r := view.records[p]).forward_s + r.backward_s for p in side]) for side in (senders, receivers)]
    seconds: npt.NDArray[np.float64] = (
        (compute[0][:, None] + compute[1][None, :]) / 2
        + (forth_latency + back_latency) / 2
        + both_ways_bytes / (forth_bandwidth + back_bandwidth)
    )
    whole: IntArray = np.minimum(np.rint(seconds * MICROSECONDS), MAX_COST_US).astype(np.int64)
    return whole


def _measured_pairs(view: NetworkView, senders: tuple[PeerId, ...], receivers: tuple[PeerId, ...]) -> list[tuple[int, int]]:
    """Index pairs with a measurement in at least one direction."""
    row, column = ({p: i for i, p in enumerate(side)} for side in (senders, receivers))
    forth = {(row[p], column[m.to]) for p in senders for m in view.records[p].links if m.to in column}
    back = {(row[m.to], column[p]) for p in receivers for m in view.records[p].links if m.to in row}
    return sorted(forth | back)


__all__ = [
    "MAX_CAPACITY",
    "MAX_COST_US",
    "MAX_STAGES",
    "NO_ARC",
    "DataPeer",
    "Problem",
    "StagePeer",
    "hop_costs_us",
    "problem_of_view",
]
