"""A fast model of one iteration: who computes what when, given each microbatch's path. Planners score plans with it.

**What is modelled**, as the protocol does it (`stage_peer`, `data_peer`, `simulation`): one computation at a time per peer;
stage peers take backward before forward and what was offered earlier before what came later; a stage peer's slots are held
from the start of a forward to the end of its backward, and inputs beyond them wait, unless it recomputes: then a forward that
finds no slot free holds none, and its backward takes a forward more; data peers prefer a loss to an embedding
to a finish; transfers overlap with computing, last a latency and their bytes, and share the link and both peers' lines.

**What is simplified.** A transfer's rate is the least of its equal shares of the link and the two lines; what others cannot use
of a share is not given to it (max-min sharing would). Small messages take no time. Nobody fails.

**Pace.** A microbatch leaves its data peer when the queue of inputs before its first stage peer has room (`window`): as late as
keeps that stage peer busy. So early microbatches do not share the data peer's line with ones that would only wait, and stage
peers see them in the planned order. The forecast says when that is, and these times are part of a plan.

A path is (data peer, stage peer of stage 1, ..., stage peer of stage S), peers by number. Times are microseconds, sizes bytes.
Only additions, multiplications, divisions and comparisons are done, in a fixed order, so equal inputs give equal forecasts on
any machine. A forecast of 16 microbatches in 6 stages (464 computations and transfers) takes about 0.7 ms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.hop_cost import HopBytes

Path = tuple[int, ...]
"""See the module docstring."""

WINDOW = 1
"""Inputs on their way to or waiting at a stage peer of stage 1. One keeps it busy; more only share the data peer's line."""

UNLIMITED = 1 << 30
"""Slots of a peer without a limit."""

SENDING, ARRIVING, COMPUTING, QUEUED, DONE = range(5)


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two peers that nobody else uses: latency, and bytes per microsecond."""

    latency_us: float
    bandwidth: float


@dataclass(frozen=True, eq=False)
class Pipeline:
    """All that a forecast needs. Lists are indexed by the peer's number; peers are numbered by id.

    `before_us` is a forward or an embedding, `after_us` a backward or a finish, `loss_us` the head and loss (data peers).
    `line` is bytes per microsecond in each direction, infinite when not known. `starts_us`: when a data peer's iteration
    begins, the coordinator's being 0. `links[sender * peers + receiver]` must know each link of a path in both directions.
    """

    peers: tuple[PeerId, ...]
    stages: int
    hops: HopBytes
    slots: tuple[int, ...]
    before_us: tuple[float, ...]
    after_us: tuple[float, ...]
    loss_us: tuple[float, ...]
    line: tuple[float, ...]
    starts_us: tuple[float, ...]
    demand: tuple[tuple[int, int], ...]
    stage_peers: tuple[tuple[int, ...], ...]
    links: Mapping[int, Link]
    recomputes: tuple[bool, ...] = ()

    def waits_for_slots(self, peer: int) -> bool:
        """Is a forward held up when all slots are taken?"""
        return not (self.recomputes and self.recomputes[peer])

    def idle_us(self, sender: int, receiver: int, size: float) -> float:
        """A whole transfer of so many bytes that has the link and both lines to itself."""
        link = self.links[sender * len(self.peers) + receiver]
        return link.latency_us + size / min(link.bandwidth, self.line[sender], self.line[receiver])

    def there_and_back_us(self, k: int, above: int, below: int) -> float:
        """An activation over hop k from `above` to `below` and its gradient back, idle."""
        return self.idle_us(above, below, self.hops.forth(k)) + self.idle_us(below, above, self.hops.back(k))


@dataclass(slots=True)
class Forecast:
    """`finish_us[m]`: microbatch m is back. `release_us[m]`: it leaves its data peer's queue of microbatches not begun.

    `wait_us[m * stages + k - 1]`: how long it waits at its stage peer of stage k, both passes together. `offered_us[m][k]`:
    when the transfer to that stage peer begins to arrive.
    """

    makespan_us: float
    finish_us: list[float]
    release_us: list[float]
    wait_us: list[float]
    offered_us: list[list[float]]

    @property
    def mean_finish_us(self) -> float:
        return sum(self.finish_us) / len(self.finish_us)


def forecast(pipeline: Pipeline, paths: Sequence[Path], window: int = WINDOW) -> Forecast:
    """One iteration; earlier microbatches of `paths` are released first. O(E log E) for E computations and transfers."""
    return Run(pipeline, paths, window).run()


def round_trip(path: Path) -> Path:
    """The peers at each position of a microbatch's way."""
    return (*path, path[0], *path[:0:-1], path[0])


class Run:
    """One forecast. Positions on a round trip: 0 embedding, 1..S forwards, S + 1 loss, then back, 2 S + 2 finish.

    Each microbatch is in one place and has at most one event in the heap, besides outdated ones, which `version` tells. It
    ends at its `last` position; from `jumps[m][0]` it goes on at `jumps[m][1]` (`underway` makes use of these). `again` has
    (m, position) of the forwards that kept no activations.
    """

    def __init__(self, pipeline: Pipeline, paths: Sequence[Path], window: int) -> None:
        count, peers = len(paths), len(pipeline.peers)
        self.pipeline, self.window, self.count = pipeline, window, count
        self.turn = pipeline.stages + 1
        hops = pipeline.hops
        self.sizes = [*(hops.forth(k) for k in range(self.turn)), *(hops.back(k) for k in range(pipeline.stages, -1, -1))]
        self.routes = [round_trip(path) for path in paths]
        self.position, self.state, self.version = [-1] * count, [ARRIVING] * count, [0] * count
        self.left, self.rate, self.updated = [0.0] * count, [0.0] * count, [0.0] * count
        self.offered = [[0.0] * self.turn for _ in paths]
        self.queued_at, self.sequence = [0.0] * count, [0] * count
        self.kept, self.running, self.backlog = [0] * peers, [False] * peers, [0] * peers
        self.queues: list[list[tuple[int, float, int]]] = [[] for _ in range(peers)]
        self.up: list[list[int]] = [[] for _ in range(peers)]
        self.down: list[list[int]] = [[] for _ in range(peers)]
        self.on_link: dict[int, list[int]] = {}
        self.heap: list[tuple[float, int, int]] = []
        self.last = [2 * self.turn] * count
        self.jumps: dict[int, tuple[int, int]] = {}
        self.again: set[tuple[int, int]] = set()
        self.gates = [pipeline.waits_for_slots(peer) for peer in range(peers)]
        self.released = 0
        self.pending: list[list[int]] = [[] for _ in range(peers)]
        for m in range(count - 1, -1, -1):
            self.pending[paths[m][1]].append(m)
        zeros = [0.0] * count
        self.result = Forecast(0.0, zeros, zeros.copy(), [0.0] * (count * pipeline.stages), self.offered)

    def run(self) -> Forecast:
        self.begin(0.0)
        self.advance(float("inf"))
        self.result.makespan_us = max(self.result.finish_us)
        return self.result

    def begin(self, now: float) -> None:
        """Release what may be released."""
        for stage_peer in self.pipeline.stage_peers[1]:
            self._release(stage_peer, now)

    def advance(self, until: float) -> None:
        """All that happens up to then."""
        heap, version, state = self.heap, self.version, self.state
        sent, arrived, computed = self._sent, self._arrived, self._computed
        while heap and heap[0][0] <= until:
            now, m, number = heappop(heap)
            if number != version[m]:
                continue
            what = state[m]
            if what == COMPUTING:
                computed(m, now)
            elif what == ARRIVING:
                arrived(m, now)
            else:
                sent(m, now)

    def _release(self, stage_peer: int, now: float) -> None:
        pending = self.pending[stage_peer]
        while pending and self.backlog[stage_peer] < self.window:
            m = pending.pop()
            self.backlog[stage_peer] += 1
            self.sequence[m] = self.released = self.released + 1
            begin = max(now, self.pipeline.starts_us[self.routes[m][0]])
            self.result.release_us[m] = begin
            heappush(self.heap, (begin, m, 0))

    # ---- transfers

    def send(self, m: int, position: int, sender: int, now: float) -> None:
        pipeline = self.pipeline
        receiver = self.routes[m][position + 1]
        number = sender * len(pipeline.peers) + receiver
        link = pipeline.links[number]
        up, down = self.up[sender], self.down[receiver]
        on_link = self.on_link.get(number)
        if on_link is None:
            on_link = self.on_link[number] = []
        up.append(m)
        down.append(m)
        on_link.append(m)
        size = self.sizes[position]
        if position < pipeline.stages:
            self.offered[m][position + 1] = now + link.latency_us
        rate = min(link.bandwidth / len(on_link), pipeline.line[sender] / len(up), pipeline.line[receiver] / len(down))
        self.left[m], self.updated[m], self.rate[m] = size, now, rate
        self.state[m] = SENDING
        heappush(self.heap, (now + size / rate, m, self.version[m]))
        if len(up) > 1 or len(down) > 1:
            self._share((*up, *down), now)

    def _sent(self, m: int, now: float) -> None:
        position, route = self.position[m], self.routes[m]
        sender, receiver = route[position], route[position + 1]
        number = sender * len(self.pipeline.peers) + receiver
        up, down = self.up[sender], self.down[receiver]
        up.remove(m)
        down.remove(m)
        self.on_link[number].remove(m)
        self.state[m] = ARRIVING
        heappush(self.heap, (now + self.pipeline.links[number].latency_us, m, self.version[m]))
        if up or down:
            self._share((*up, *down), now)

    def _share(self, transfers: tuple[int, ...], now: float) -> None:
        """New rates, where they have changed, of all who share a line (or the link, which is between two lines)."""
        pipeline, rates, up, down, peers = self.pipeline, self.rate, self.up, self.down, len(self.pipeline.peers)
        line = pipeline.line
        for m in transfers:
            route, position = self.routes[m], self.position[m]
            sender, receiver = route[position], route[position + 1]
            number = sender * peers + receiver
            rate = pipeline.links[number].bandwidth / len(self.on_link[number])
            share = line[sender] / len(up[sender])
            if share < rate:
                rate = share
            share = line[receiver] / len(down[receiver])
            if share < rate:
                rate = share
            if rate != rates[m]:
                left = self.left[m] - rates[m] * (now - self.updated[m])
                self.left[m], self.updated[m], rates[m] = left, now, rate
                self.version[m] += 1
                heappush(self.heap, (now + left / rate, m, self.version[m]))

    # ---- computing

    def _arrived(self, m: int, now: float) -> None:
        position = self.position[m] = self.position[m] + 1
        peer = self.routes[m][position]
        is_full = 0 < position < self.turn and self.gates[peer] and self.kept[peer] >= self.pipeline.slots[peer]
        if not self.running[peer] and not is_full and not self.queues[peer]:
            self._compute(m, position, peer, now)
            return
        self.queued_at[m] = now
        self.state[m] = QUEUED
        if position % self.turn == 0:  # at the data peer
            rank = 0 if position == self.turn else 1 if position == 0 else 2
            heappush(self.queues[peer], (rank, self.sequence[m], m))
        elif position < self.turn:
            heappush(self.queues[peer], (1, self.offered[m][position], m))
        else:
            heappush(self.queues[peer], (0, self.offered[m][2 * self.turn - position], m))
        if not self.running[peer]:
            self._next(peer, now)

    def _next(self, peer: int, now: float) -> None:
        queue, stages = self.queues[peer], self.pipeline.stages
        m = queue[0][2]
        position = self.position[m]
        if 0 < position < self.turn and self.gates[peer] and self.kept[peer] >= self.pipeline.slots[peer]:
            return
        heappop(queue)
        stage = position if position <= stages else 2 * self.turn - position
        if 0 < stage <= stages:
            self.result.wait_us[m * stages + stage - 1] += now - self.queued_at[m]
        self._compute(m, position, peer, now)

    def _compute(self, m: int, position: int, peer: int, now: float) -> None:
        pipeline = self.pipeline
        self.running[peer] = True
        if position < self.turn:
            lasts = pipeline.before_us[peer]
            if position > 0:
                if self.kept[peer] >= pipeline.slots[peer]:
                    self.again.add((m, position))
                else:
                    self.again.discard((m, position))
                    self.kept[peer] += 1
            if position == 1:
                self.backlog[peer] -= 1
                self._release(peer, now)
        else:
            lasts = pipeline.after_us[peer] if position > self.turn else pipeline.loss_us[peer]
            if self.again and (m, 2 * self.turn - position) in self.again:
                lasts += pipeline.before_us[peer]
        self.state[m] = COMPUTING
        heappush(self.heap, (now + lasts, m, self.version[m]))

    def _computed(self, m: int, now: float) -> None:
        position = self.position[m]
        peer = self.routes[m][position]
        self.running[peer] = False
        if self.turn < position < 2 * self.turn:
            self.kept[peer] -= (m, 2 * self.turn - position) not in self.again
        if position == self.last[m]:
            self.result.finish_us[m] = now
            self.state[m] = DONE
        elif m in self.jumps and self.jumps[m][0] == position:
            position = self.position[m] = self.jumps[m][1]
            self.send(m, position, self.routes[m][position], now)
        else:
            self.send(m, position, peer, now)
        if self.queues[peer]:
            self._next(peer, now)
