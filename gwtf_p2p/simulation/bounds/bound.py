"""What no router can beat: microbatches per second, and seconds per iteration.

**Steady state.** Let f(d, i, j) be the microbatches per second of data peer d that go from peer i to peer j of the next
layer. Maximise the rate x that all data peers reach, subject to: conservation at each stage peer; compute, f_i (forward +
backward) <= 1; slots by Little's law, sum of f x (time that the microbatch holds the slot, at the least) <= capacity; lines,
an activation and a gradient each way, 2 f_i size <= line; links, f_ij size <= bandwidth. A linear program, as the least
holding time is a constant of (d, i, j). The result is D x.

**One iteration** of M microbatches per data peer does not reach the steady state: it has to fill and to drain. For a span T
the same program bounds the *number* of microbatches when each resource gets the part of T in which it can be of use: stage
peer i has no input before `arrived_s`, and after its last backward the gradient still needs `up_s`. The least T that carries M
is a bound, as is the least T for which the stages' integral counts (whole microbatches per stage peer and per slot) add up. To
it comes what every router pays at the end: the messages of the close and the average of the slowest stage group.

Both bounds assume all peers up; `clairvoyant_s` is the second one for those that an iteration could count on
(`measure/presence`), known in advance. They are tight where one resource is the bottleneck throughout; they are not where the
order of work matters (queues, backward first), where lines are shared at the wrong time, or with churn.
scipy is loaded when the first program is solved. Of a very large swarm no program is made (`MOST_HOPS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.simulation.bounds.path_times import PathTimes, path_times
from gwtf_p2p.simulation.bounds.program import Program
from gwtf_p2p.simulation.bounds.resources import StagePeer, data_peer_limits, stage_peers_of
from gwtf_p2p.simulation.lines.averaging import round_seconds
from gwtf_p2p.simulation.scenario.draw import DrawnPeer
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.swarm.build import Memory, Swarm, sizes_of

PRECISION = 1e-4

MOST_HOPS = 100_000
"""Of a program. In larger swarms both bounds are those of each stage as a whole, which is looser and has no program: at ten
thousand stage peers in twenty stages it would have five million variables."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`iteration_s` includes `closing_s`, the end that every router pays. `by_stages`: without the program, see `MOST_HOPS`."""

    microbatches_per_second: float
    iteration_s: float
    closing_s: float
    by_stages: bool = False


def clairvoyant_s(swarm: Swarm, present: Collection[PeerId]) -> float | None:
    """Seconds of an iteration that has just these stage peers; None when a stage has none."""
    drawn = {peer: each for peer, each in swarm.drawn.items() if each.stage == DATA_STAGE or peer in present}
    if len({each.stage for each in drawn.values()}) <= swarm.scenario.model.stages:
        return None
    return bound_of(replace(swarm, drawn=drawn)).iteration_s


def bound_of(swarm: Swarm, most_hops: int = MOST_HOPS) -> Bound:
    """The bounds of a swarm as it is built; by stages alone when it has more hops than this."""
    sizes = sizes_of(swarm.scenario, swarm.arm)
    times = path_times([_with_slots(peer, swarm) for peer in swarm.drawn.values()], swarm.links, sizes)
    demands = tuple(swarm.shares[peer.id] for peer in times.layers[0])
    closing_s = _closing_s(swarm, sizes)
    if sum(matrix.size for matrix in times.forth_s) > most_hops:
        stage_peers = list(stage_peers_of(times, sizes, queues=swarm.arm.queues))
        span_s = _least_of_stages_s(stage_peers, times, sum(demands))
        return Bound(_most_of_stages(stage_peers, times, sizes, demands), span_s + closing_s, closing_s, by_stages=True)
    program = Program(times, sizes, demands, queues=swarm.arm.queues)
    span_s = _least_span_s(program, times, sum(demands))
    return Bound(program.most(math.inf) * program.data_peers, span_s + closing_s, closing_s)


def _with_slots(peer: DrawnPeer, swarm: Swarm) -> DrawnPeer:
    """Where activations are computed again, slots limit nothing; that it costs a forward is left out, so the bound holds."""
    if swarm.arm.memory is not Memory.ADAPTIVE or not swarm.arm.queues or peer.stage == DATA_STAGE:
        return peer
    return replace(peer, capacity=swarm.scenario.data_peers * swarm.scenario.model.microbatches_per_data_peer)


def _closing_s(swarm: Swarm, sizes: Sizes) -> float:
    """Close to every member, the average of the slowest group, the answers, and the commit to the other data peers."""
    links = swarm.links
    groups = [[p for p, drawn in swarm.drawn.items() if drawn.stage == k] for k in range(swarm.scenario.model.stages + 1)]
    coordinator = min(groups[0])
    rounds = [
        max(links.latency_s(coordinator, m) for m in group)
        + min(round_seconds(links, group, sizes.mean_averaged(Stage(stage)), most) for most in (0, MOST_ALL_WITH_ALL))
        + max(links.latency_s(m, coordinator) for m in group)
        for stage, group in enumerate(groups)
    ]
    return max(rounds) + max(links.latency_s(coordinator, other) for other in groups[0])


def _least_span_s(program: Program, times: PathTimes, needed: int) -> float:
    """The largest of three lower bounds on the time from the first embedding to the last finish."""
    whole = _least_of_stages_s(program.stage_peers, times, needed)
    if not program.is_small:
        return whole
    return _least(lambda span: program.most(span) * program.data_peers >= needed * (1 - PRECISION), whole)


def _least_of_stages_s(stage_peers: Sequence[StagePeer], times: PathTimes, needed: int) -> float:
    """Until the shortest way of the last data peer has been gone, and each stage has done all microbatches."""
    whole = float((times.before_s[0] + times.below_s(0).min(axis=1) + times.after_s[0]).max())
    for k in range(1, times.stages + 1):
        whole = _least(partial(_carries, [stage_peer for stage_peer in stage_peers if stage_peer.stage == k], needed), whole)
    return whole


def _most_of_stages(stage_peers: Sequence[StagePeer], times: PathTimes, sizes: Sizes, demands: Sequence[int]) -> float:
    """Microbatches per second that pass the stage that is slowest as a whole, and the data peer that holds up the others."""
    stages = [0.0] * times.stages
    for stage_peer in stage_peers:
        slots = stage_peer.slots / stage_peer.hold_s
        stages[stage_peer.stage - 1] += min(slots, *(limit.rate / limit.amount for limit in stage_peer.limits))
    own = [min(limit.rate / limit.amount for limit in limits) for limits in data_peer_limits(times, sizes)]
    return min(*stages, *(rate * sum(demands) / demand for rate, demand in zip(own, demands, strict=True) if demand))


def _carries(stage_peers: list[StagePeer], needed: int, span_s: float) -> bool:
    return sum(stage_peer.whole(span_s) for stage_peer in stage_peers) >= needed


def _least(enough: Callable[[float], bool], low: float) -> float:
    """The least span from `low` on that is enough, from below, to one part in 1 / PRECISION."""
    if enough(low):
        return low
    high = low * 2
    while not enough(high):
        low, high = high, high * 2
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low
