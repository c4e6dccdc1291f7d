"""How long planning takes, and how far a plan is from the exact optimum: 100, 1,000 and 10,000 stage peers in ten stages, 64
flows.

    python -m experiments.bench.planning [--seeds N] [--stage_peers 100 1000 10000] [--data_peers 1 8]

Three kinds of network per size: `regions` (ten regions a few tens of ms apart, three speeds of peers), `plane` (peers spread
over a plane, cost near their distance) and `uniform` (every link at random: nothing to exploit, and the hardest). One data
peer is solved exactly. For several the gap is against the lower bound, so the gap to the optimum is at most that. Seconds are
CPU seconds of this process (one core, medians over seeds), `view` is the time to turn records into a problem.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from gwtf_p2p.protocol.flow.min_cost import solve
from gwtf_p2p.protocol.flow.multi_commodity import solve_joint
from gwtf_p2p.protocol.flow.problem import DataPeer, Problem, StagePeer, problem_of_view
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.schedule.from_view import figures_of
from gwtf_p2p.protocol.schedule.iteration_plan import plan_for
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource, PeerState, StageRecord, Timing

STAGES, FLOWS, LINKS_PER_RECORD = 10, 64, 32
KINDS = ("regions", "plane", "uniform")
LARGEST_VIEW = 1000


def made_up(kind: str, stage_peers: int, data_peers: int, rng: np.random.Generator) -> Problem:
    """A problem of `stage_peers` stage peers in ten stages whose data peers want `FLOWS` flows together. Costs in
    microseconds."""
    per_stage = stage_peers // STAGES
    sizes = [data_peers, *[per_stage] * STAGES]
    data = tuple(DataPeer(PeerId(f"d{i:03}"), FLOWS // data_peers) for i in range(data_peers))
    stages = tuple(
        tuple(StagePeer(PeerId(f"r{k:02}_{i:04}"), int(rng.integers(1, 5))) for i in range(per_stage)) for k in range(STAGES)
    )
    if kind == "uniform":
        shapes = zip(sizes, [*sizes[1:], data_peers], strict=True)
        return Problem(kind, data, stages, tuple(rng.integers(10_000, 1_000_000, shape) for shape in shapes))
    places = [rng.random((n, 2)) for n in sizes]
    if kind == "regions":
        centres = rng.random((10, 2))
        places = [centres[rng.integers(0, 10, n)] for n in sizes]
    speeds = [rng.choice([100_000, 200_000, 300_000], n) for n in sizes]
    pairs = zip(range(len(sizes)), [*range(1, len(sizes)), 0], strict=True)
    costs = [_distances_us(places[a], places[b]) + (speeds[a][:, None] + speeds[b][None, :]) // 2 for a, b in pairs]
    return Problem(kind, data, stages, tuple(costs))


def _distances_us(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    apart = np.sqrt(((here[:, None, :] - there[None, :, :]) ** 2).sum(axis=2))
    steps: np.ndarray = (10_000 + 150_000 * apart).astype(np.int64)
    return steps


def view_of(stage_peers: int, data_peers: int, rng: np.random.Generator) -> NetworkView:
    """Records as a swarm of that size publishes them: each peer has measured a few of its links."""
    names = [(PeerId(f"d{i:03}"), 0) for i in range(data_peers)]
    names += [(PeerId(f"r{i % STAGES:02}_{i:05}"), i % STAGES + 1) for i in range(stage_peers)]
    records = []
    for peer, stage in names:
        others = rng.choice(len(names), LINKS_PER_RECORD)
        links = tuple(
            LinkMeasurement(names[i][0], float(rng.uniform(0.01, 0.3)), 1e7, LinkSource.TRAFFIC, 5, 1.0) for i in others
        )
        timing = Timing(float(rng.choice([0.1, 0.2, 0.3])), 10, 1.0)
        capacity = FLOWS // data_peers if stage == 0 else int(rng.integers(1, 5))
        records.append(
            StageRecord(peer, RunId("bench"), Stage(stage), PeerState.ONLINE, capacity, 0, timing, timing, links=links)
        )
    return NetworkView.of(records, STAGES, 4_194_304)


def timed_view_s(stage_peers: int, data_peers: int, seed: int) -> float:
    view = view_of(stage_peers, data_peers, np.random.default_rng(seed))
    began = time.process_time()
    problem_of_view(view)
    return time.process_time() - began


def timed_iteration_s(stage_peers: int, data_peers: int, seed: int) -> tuple[float, float]:
    """CPU seconds from records to a plan of an iteration, and the makespan that is forecast."""
    view = view_of(stage_peers, data_peers, np.random.default_rng(seed))
    began = time.process_time()
    figures, why = figures_of(view)
    assert figures is not None, why
    plan = plan_for.__wrapped__(figures, (), seed)
    return time.process_time() - began, plan.makespan_s


def bench_iterations(sizes: list[int], seeds: int) -> None:
    print(f"plans of an iteration, {STAGES} stages, {FLOWS} microbatches, 8 data peers: medians of {seeds} seeds")
    for stage_peers in sizes:
        spent, makespans = zip(*(timed_iteration_s(stage_peers, 8, seed) for seed in range(seeds)), strict=True)
        print(f"{stage_peers:>7} stage peers: {median(spent):.2f} CPU seconds, {median(makespans):.2f} s forecast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stage_peers", "--relays", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--data_peers", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--iteration", action="store_true", help="plans of an iteration instead of flows of least cost")
    args = parser.parse_args()
    if args.iteration:
        bench_iterations(args.stage_peers, args.seeds)
        return
    print(f"{STAGES} stages, {FLOWS} flows wanted, {args.seeds} seeds: medians (worst)")
    row = "{:>7} {:>10} {:>8} {:>6} {:>15} {:>17} {:>9}"
    print(row.format("stage_peers", "data peers", "network", "flows", "CPU seconds", "gap %", "exact s"))
    for stage_peers in args.stage_peers:
        for data_peers in args.data_peers:
            for kind in KINDS:
                seconds, gaps, flows, exact = [], [], [], []
                for seed in range(args.seeds):
                    problem = made_up(kind, stage_peers, data_peers, np.random.default_rng(seed))
                    began = time.process_time()
                    joint = solve_joint(problem)
                    seconds.append(time.process_time() - began)
                    began = time.process_time()
                    solve(problem.network(), problem.demand)
                    exact.append(time.process_time() - began)
                    gaps.append(100 * (joint.cost_us / joint.lower_bound_us - 1))
                    flows.append(len(joint.flows))
                spent, gap = (f"{median(x):.3f} ({max(x):.3f})" for x in (seconds, gaps))
                count = f"{min(flows)}"
                print(row.format(stage_peers, data_peers, kind, count, spent, gap, f"{median(exact):.3f}"), flush=True)
        if stage_peers <= LARGEST_VIEW:
            view_s = median(timed_view_s(stage_peers, 8, seed) for seed in range(args.seeds))
            print(f"{stage_peers:>7} stage peers: {view_s:.3f} s from records to problem")


if __name__ == "__main__":
    main()
