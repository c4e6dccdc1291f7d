"""Random problems, views of them, and second solvers (HiGHS through scipy) that share no code with the package."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from gwtf_p2p.protocol.flow.min_cost import FAR, NO_ARC
from gwtf_p2p.protocol.flow.problem import DataPeer, Problem, StagePeer
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PeerState, StageRecord, Timing


@dataclass(frozen=True)
class Size:
    """`missing` is the share of links left out."""

    stages: int
    stage_peers: int
    data_peers: int = 1
    demand: int = 8
    capacity: int = 4
    missing: float = 0.0
    dearest: int = 1000


def random_problem(rng: np.random.Generator, size: Size) -> Problem:
    data = tuple(DataPeer(PeerId(f"d{i}"), int(rng.integers(1, size.demand + 1))) for i in range(size.data_peers))
    stage_peers = tuple(
        tuple(StagePeer(PeerId(f"r{k}_{i:02}"), int(rng.integers(0, size.capacity + 1))) for i in range(size.stage_peers))
        for k in range(1, size.stages + 1)
    )
    sizes = [size.data_peers, *[size.stage_peers] * size.stages, size.data_peers]
    costs = []
    for before, after in pairwise(sizes):
        matrix = rng.integers(0, size.dearest + 1, (before, after))
        matrix[rng.random(matrix.shape) < size.missing] = NO_ARC
        costs.append(matrix.astype(np.int64))
    return Problem("random", data, stage_peers, tuple(costs))


def best_by_highs(problem: Problem) -> tuple[int, int]:
    """(flows, cost) of the integral multi-commodity optimum: most flows first, then the least cost."""
    columns = _Columns(problem)
    matrix, upper, lower = columns.constraints()
    leaves = np.array([1.0 if layer == 0 else 0.0 for _, layer, _, _ in columns.arcs])
    cost = np.array([float(problem.costs_us[layer][i, j]) for _, layer, i, j in columns.arcs])
    if not columns.arcs:
        return 0, 0
    flow_bounds = LinearConstraint(matrix, lower, upper)
    whole, options = np.ones(len(cost)), {"mip_rel_gap": 0.0}
    most = milp(-leaves, constraints=flow_bounds, integrality=whole, bounds=Bounds(0, np.inf), options=options)
    flows = round(-most.fun)
    exactly = LinearConstraint(leaves[None, :], flows, flows)
    best = milp(cost, constraints=[flow_bounds, exactly], integrality=whole, bounds=Bounds(0, np.inf), options=options)
    return flows, round(best.fun)


class _Columns:
    """One variable per data peer and link that it may use."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        last = problem.stages
        self.arcs = [
            (d, layer, i, j)
            for d in range(len(problem.data_peers))
            for layer, costs in enumerate(problem.costs_us)
            for i, j in zip(*(x.tolist() for x in (costs < FAR).nonzero()), strict=True)
            if (layer > 0 or i == d) and (layer < last or j == d)
        ]

    def constraints(self) -> tuple[coo_matrix, list[float], list[float]]:
        rows: dict[tuple[object, ...], int] = {}
        entries: list[tuple[int, int, int]] = []
        upper: list[float] = []
        lower: list[float] = []

        def add(key: tuple[object, ...], variable: int, factor: int, bounds: tuple[float, float]) -> None:
            if key not in rows:
                rows[key] = len(rows)
                lower.append(bounds[0])
                upper.append(bounds[1])
            entries.append((rows[key], variable, factor))

        capacities = self.problem.capacities
        for variable, (d, layer, i, j) in enumerate(self.arcs):
            if layer < self.problem.stages:
                add(("kept", d, layer + 1, j), variable, 1, (0, 0))
                add(("capacity", layer + 1, j), variable, 1, (0, float(capacities[layer + 1][j])))
            if layer > 0:
                add(("kept", d, layer, i), variable, -1, (0, 0))
            else:
                add(("demand", d), variable, 1, (0, float(capacities[0][d])))
        r, c, v = zip(*entries, strict=True) if entries else ((), (), ())
        return coo_matrix((v, (r, c)), shape=(max(1, len(rows)), max(1, len(self.arcs)))).tocsr(), upper, lower


def record(peer: str, stage: int, capacity: int, seconds: float = 0.1, **fields: object) -> StageRecord:
    """An ONLINE peer that takes `seconds` forward and twice that backward."""
    forward, backward = Timing(seconds, 10, 0.0), Timing(2 * seconds, 10, 0.0)
    return StageRecord(
        peer=PeerId(peer),
        run_id=RunId("test"),
        stage=Stage(stage),
        state=PeerState.ONLINE,
        capacity=capacity,
        forward=forward,
        backward=backward,
        **fields,  # type: ignore[arg-type]
    )


def random_view(rng: np.random.Generator, size: Size) -> NetworkView:
    """Every peer measured some of its links; the others are assumed."""
    peers = [(f"d{i}", 0, size.demand) for i in range(size.data_peers)]
    peers += [
        (f"r{k}_{i}", k, int(rng.integers(1, size.capacity + 1)))
        for k in range(1, size.stages + 1)
        for i in range(size.stage_peers)
    ]
    records = []
    for name, stage, capacity in peers:
        others = [p for p, _, _ in peers if p != name and rng.random() < 0.5]
        links = tuple(
            LinkMeasurement(PeerId(p), float(rng.uniform(0.01, 0.3)), float(rng.uniform(1e6, 1e8)), LinkSource.PROBE, 3, 1.0)
            for p in others
        )
        line = float(rng.choice([0.0, 5e6, 2e7]))
        records.append(record(name, stage, capacity, float(rng.uniform(0.05, 0.4)), links=links, line_bytes_per_s=line))
    return NetworkView.of(records, size.stages, 1_000_000)
