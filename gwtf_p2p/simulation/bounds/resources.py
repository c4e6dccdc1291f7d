"""What limits a peer: amounts per microbatch, and the part of an iteration in which the resource can be of use.

A `Limit` says: so many microbatches need `amount` each of something that is supplied at `rate` per second, in a span T of
which the first and last seconds, `lost_s` together, are of no use. See `bound` for the argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gwtf_p2p.simulation.bounds.path_times import PathTimes
from gwtf_p2p.simulation.scenario.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Limit:
    """In the steady state (an infinite span) the supply per second counts, and nothing is lost."""

    amount: float
    rate: float
    lost_s: float

    def supply(self, span_s: float) -> float:
        return self.rate if math.isinf(span_s) else self.rate * max(0.0, span_s - self.lost_s)


@dataclass(frozen=True, slots=True)
class StagePeer:
    """Stage peer `index` of `stage`. A slot is held for `hold_s` or more."""

    stage: int
    index: int
    limits: tuple[Limit, ...]
    least_span_s: float
    slots: int
    hold_s: float
    slot_lost_s: float

    def whole(self, span_s: float) -> int:
        """Most microbatches that this stage peer can do in a span."""
        if span_s < self.least_span_s:
            return 0
        in_slots = self.slots * int((span_s - self.slot_lost_s) / self.hold_s + 1e-9)
        return min(in_slots, *(int(limit.supply(span_s) / limit.amount + 1e-9) for limit in self.limits))


def stage_peers_of(times: PathTimes, sizes: Sizes, *, queues: bool) -> Iterator[StagePeer]:
    """All stage peers, by stage. `queues`: an input that waits or arrives takes no
    slot."""
    hops = sizes.hops
    for k in range(1, times.stages + 1):
        away = times.below_s(k).min(axis=0)
        away_sent = below_sent_s(times, k)
        into = np.asarray(times.forth_s[k - 1] - times.latency_s[k - 1]).min(axis=0) * (not queues)
        for i, peer in enumerate(times.layers[k]):
            before, after = float(times.before_s[k][i]), float(times.after_s[k][i])
            offered, arrived = float(times.offered_s[k][i]), float(times.arrived_s[k][i])
            up, up_sent, below = float(times.up_s[k][i]), float(times.up_sent_s[k][i]), float(away[i])
            limits = [
                Limit(before + after, 1.0, arrived + up),
                Limit(before, 1.0, arrived + below + after + up),
                Limit(after, 1.0, arrived + before + below + up),
            ]
            line = peer.line_bytes_per_s
            if line is not None:
                limits += [
                    Limit(hops.forth(k) + hops.back(k - 1), line, arrived + before + up_sent),
                    Limit(hops.forth(k - 1) + hops.back(k), line, offered + after + up),
                    Limit(hops.forth(k - 1), line, offered + before + below + after + up),
                    Limit(hops.forth(k), line, arrived + before + float(away_sent[i]) + after + up),
                ]
            hold_s = float(into[i]) + before + below + after
            least = arrived + before + below + after + up
            yield StagePeer(k, i, tuple(limits), least, peer.capacity, hold_s, (arrived if queues else offered) + up)


def below_sent_s(times: PathTimes, k: int) -> np.ndarray:
    """Like the least `below_s` over the data peers, from the end of the onward transfer instead of its start."""
    if k == times.stages:
        return np.asarray((times.latency_s[k].T + times.loss_s[:, None] + times.back_s[k].T).min(axis=0))
    down = times.down_s[k + 1].min(axis=0)
    return np.asarray((times.latency_s[k] + down[None, :] + times.back_s[k]).min(axis=1))


def data_peer_limits(times: PathTimes, sizes: Sizes) -> list[list[Limit]]:
    """Per data peer: its device and its line."""
    last, hops = times.stages, sizes.hops
    first_in = float(times.offered_s[last + 1].min())
    sent = below_sent_s(times, 0)
    after_last_out = float((times.latency_s[last].min(axis=1) + times.after_s[last] + times.up_s[last]).min())
    limits = []
    for d, peer in enumerate(times.layers[0]):
        before, after = float(times.before_s[0][d]), float(times.after_s[0][d])
        own = [Limit(before + float(times.loss_s[d]) + after, 1.0, 0.0)]
        line = peer.line_bytes_per_s
        if line is not None:
            own += [
                Limit(hops.forth(0) + hops.back(last), line, before + after_last_out),
                Limit(hops.forth(last) + hops.back(0), line, first_in + after),
                Limit(hops.forth(0), line, before + float(sent[d]) + after),
            ]
        limits.append(own)
    return limits
