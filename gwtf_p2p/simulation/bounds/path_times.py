"""Least times in an idle swarm: how soon a microbatch can reach a peer, how long it is away below, how long it needs back.

Layers are 0 (data peers), 1..S (stage peers) and again 0: a microbatch ends where it began. All times are lower bounds for any
router: the best path is taken, nothing queues, and a transfer has its link and both lines to itself. Arrays are indexed by
the peer's place in its layer; `down` has a row per data peer, as the turning point below is the one above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.simulation.lines.links import Links
from gwtf_p2p.simulation.scenario.draw import DrawnPeer
from gwtf_p2p.simulation.scenario.sizes import Sizes

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PathTimes:
    """`before_s`/`after_s`: what a peer computes before it sends on (forward, embedding) and after the return (backward).

    `forth_s[k][i, j]`: a whole transfer from the i-th peer of layer k to the j-th of layer k + 1, `back_s[k][i, j]` the way
    back, `latency_s[k][i, j]` what of it is latency (both ways alike). `offered_s[k]`: when the first byte of the first
    microbatch can reach a peer of layer k; `arrived_s[k]`: the whole of it. `down_s[k][d, i]`: from whole arrival at stage
    peer i until its backward is done, for a microbatch of data peer d. `up_s[k]`: from the end of the backward until the data
    peer has finished; `up_sent_s[k]`: the same without the first hop's transfer time.
    """

    layers: tuple[tuple[DrawnPeer, ...], ...]
    loss_s: Seconds
    before_s: tuple[Seconds, ...]
    after_s: tuple[Seconds, ...]
    forth_s: tuple[Seconds, ...]
    back_s: tuple[Seconds, ...]
    latency_s: tuple[Seconds, ...]
    offered_s: tuple[Seconds, ...]
    arrived_s: tuple[Seconds, ...]
    down_s: tuple[Seconds, ...]
    up_s: tuple[Seconds, ...]
    up_sent_s: tuple[Seconds, ...]

    @property
    def stages(self) -> int:
        return len(self.layers) - 1

    def below_s(self, k: int) -> Seconds:
        """[d, i]: from the start of the transfer onwards until the gradient is back, for peer i of layer k."""
        if k == self.stages:
            away = self.forth_s[k].T + self.loss_s[:, None] + self.back_s[k].T
            return np.asarray(away)
        return np.array([(self.forth_s[k] + down[None, :] + self.back_s[k]).min(axis=1) for down in self.down_s[k + 1]])


def path_times(peers: Sequence[DrawnPeer], links: Links, sizes: Sizes) -> PathTimes:
    """From the drawn peers and the links. O(sum over stages of peers x peers x data peers)."""
    stages = max(peer.stage for peer in peers)
    layers = tuple(tuple(sorted((p for p in peers if p.stage == k), key=lambda p: p.id)) for k in range(stages + 1))
    work = [[peer.work_seconds() for peer in layer] for layer in layers]
    kinds = [(Work.EMBED, Work.FINISH)] + [(Work.FORWARD, Work.BACKWARD)] * stages
    before = tuple(np.array([w[first] for w in row]) for row, (first, _) in zip(work, kinds, strict=True))
    after = tuple(np.array([w[last] for w in row]) for row, (_, last) in zip(work, kinds, strict=True))
    ring = [*layers, layers[0]]
    pairs = list(pairwise(ring))
    latency = tuple(np.array([[links.latency_s(a.id, b.id) for b in below] for a in above]) for above, below in pairs)
    ways, hops = list(enumerate(zip(pairs, latency, strict=True))), sizes.hops
    forth = tuple(_transfer_s(links, *pair, hops.forth(k)) + lat for k, (pair, lat) in ways)
    back = tuple(_transfer_s(links, *pair[::-1], hops.back(k)).T + lat for k, (pair, lat) in ways)

    offered, arrived = [np.zeros(len(layers[0]))], [np.zeros(len(layers[0]))]
    up, up_sent = [np.zeros(len(layers[0]))], [np.zeros(len(layers[0]))]
    for k in range(stages):
        ready, rest = arrived[k] + before[k], after[k] + up[k]
        offered.append((ready[:, None] + latency[k]).min(axis=0))
        arrived.append((ready[:, None] + forth[k]).min(axis=0))
        up.append((rest[:, None] + back[k]).min(axis=0))
        up_sent.append((rest[:, None] + latency[k]).min(axis=0))
    offered.append((arrived[stages] + before[stages])[:, None].min() + latency[stages].min(axis=0))
    times = PathTimes(
        layers, np.array([w[Work.LOSS] for w in work[0]]), before, after, forth, back, latency,
        tuple(offered), tuple(arrived), (), tuple(up), tuple(up_sent),
    )  # fmt: skip
    return _with_down(times)


def _with_down(times: PathTimes) -> PathTimes:
    down: list[Seconds] = [np.zeros((0, 0))] * (times.stages + 1)
    for k in range(times.stages, -1, -1):
        known = PathTimes(**{**vars(times), "down_s": tuple(down)})
        down[k] = times.before_s[k] + known.below_s(k) + times.after_s[k]
    return PathTimes(**{**vars(times), "down_s": tuple(down)})


def _transfer_s(links: Links, senders: Sequence[DrawnPeer], receivers: Sequence[DrawnPeer], size: float) -> Seconds:
    return np.array([[size / links.idle_bandwidth(a.id, b.id) for b in receivers] for a in senders])
