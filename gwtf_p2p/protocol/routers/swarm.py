"""SWARM's stochastic wiring (arXiv 2301.11913, section 3.2): interleaved weighted round-robin on response times.

**Rule.** A router keeps, for each stage that it sends to, a queue of (virtual time, random tie, peer). A microbatch goes to
the peer of least virtual time, which is charged the peer's smoothed response time. The smoothed time follows the measured
ones: ema <- gamma * dt + (1 - gamma) * ema. A newcomer enters at the current minimum with `initial_s`. So in the long run a
peer's share of the microbatches is inversely proportional to its response time. The router learns from response times and
from nothing else: no published cost, no capacity, no occupancy. Stage peers take what they are sent (a run in these arms gives
them unbounded queues); latency is hidden by keeping `in_flight` microbatches of each data peer under way.

**Two settings.** `PAPER`: initial 0.05 s, gamma 0.8, as the paper's was re-implemented for Helix (ASPLOS 2025).
`OFFICIAL`: what yandex-research/swarm does: gamma 0.1 with bias correction, a backward charged 2.5 forwards.

**Failures.** A peer that failed is banned until it announces itself again and the same stage is tried at once elsewhere with
the stored input; retries never stop. That is the machines' own repair (`protocol/transfer/repair`) with deadlines from
measured times: they pass lost and suspected peers as `excluding`. With `official_failures` the machines wait 30 s for a
forward and 75 s for a backward, and do not ban, as the official code does (`swarm_failures`).

**Data plane.** Peer to peer: each holder chooses the next peer with its own router, so a router has one queue (its next
stage). In `swarm-hub` every hop also returns to the data peer; see `simulation/world/world`.

**Deviations** from the paper (P) and the official code (O), all in the interest of equal terms with the other routers:
- A backward returns to the peer that did the forward, whose activations are kept (O chooses again and always recomputes).
  So a backward's charge falls due together with its forward's: `backward_charge` forwards are added to it.
- The response time is that of the forward: transfer, queue and computation at the next peer. O's trainer also times the
  transfer back to itself, which does not exist peer to peer.
- A response is known when the next peer has handed its output on (its `Complete`), a hop later than O's answer.
- A peer that comes back keeps its smoothed response time if its record never vanished, and enters at the current minimum.
- Whoever misses an answer asks before it gives a peer up, so that a slow peer is not taken for a dead one.
- Records are as old as everybody's; O reads them every 30 s and keeps them 300 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.view.network_view import NetworkView


@dataclass(frozen=True, slots=True)
class SwarmConfig(RouterSettings):
    """`in_flight`: own microbatches under way at once, 0 for no limit. `backward_charge` in forwards. Times in seconds.

    `rebalance_period_s`: T of the paper's rule (`membership/swarm_rebalancing`), 0 for never. `least_delay`: always the peer of
    the least smoothed response time, and no virtual time, as GWTF's paper describes SWARM. `restarts_whole`: a crash on the way
    back has the whole microbatch begun again, as it has it too (`simulation/swarm/whole_restarts`; simulated alone).
    """

    initial_s: float = 0.05
    gamma: float = 0.8
    bias_corrected: bool = False
    backward_charge: float = 0.0
    in_flight: int = 0
    official_failures: bool = False
    rebalance_period_s: float = 0.0
    least_delay: bool = False
    restarts_whole: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: expected a number above 0 up to 1, got {self.gamma}")
        if self.initial_s <= 0:
            raise ValueError(f"initial_s: expected a number above 0, got {self.initial_s}")
        for name in ("backward_charge", "in_flight", "rebalance_period_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number from 0, got {getattr(self, name)}")


PAPER = SwarmConfig()
OFFICIAL = SwarmConfig(gamma=0.1, bias_corrected=True, backward_charge=2.5)
REBALANCED = SwarmConfig(rebalance_period_s=300.0)


@dataclass(slots=True)
class PeerQueue:
    """One peer's place in a stage's queue. `virtual_s` is what it has been charged; `absent` while it could not be chosen."""

    virtual_s: float
    tie: float
    ema_s: float
    samples: int = 0
    absent: bool = False


class SwarmRouter:
    """The router of one peer. `seed` must differ from peer to peer, or all break ties alike."""

    def __init__(self, config: SwarmConfig, seed: int) -> None:
        self.config = config
        self._random = Random(seed)
        self._view: NetworkView | None = None
        self._stages: dict[Stage, dict[PeerId, PeerQueue]] = {}
        self._flying: set[MicrobatchId] = set()

    # ---- what it learns

    def observe_view(self, view: NetworkView, now: float) -> None:
        former, self._view = self._view, view
        for stage, queue in self._stages.items():
            if former is None or former.peers_of_stage(stage) != view.peers_of_stage(stage):
                self._refresh(stage, queue)

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        """Only answers count; whom to avoid is said in each request."""
        entry = self._stages.get(hop.stage, {}).get(hop.receiver)
        if entry is None or hop.seconds is None or hop.is_backward:
            return
        entry.samples += 1
        gamma = self.config.gamma
        if self.config.bias_corrected:
            # ema_n / (1 - (1 - gamma)^n), written as a step whose weight falls from 1 to gamma.
            gamma = gamma / (1 - (1 - gamma) ** entry.samples)
        entry.ema_s = gamma * hop.seconds + (1 - gamma) * entry.ema_s

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._flying.discard(microbatch)

    # ---- what it answers

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        if request.is_new and self.config.in_flight and len(self._flying) >= self.config.in_flight:
            return NoRoute(f"{len(self._flying)} of {self.config.in_flight} in flight")
        queue = self._queue(request.first_stage)
        for peer in queue:
            queue[peer].absent |= peer in request.excluding
        able = [peer for peer in queue if peer not in request.excluding]
        if not able:
            return NoRoute(f"none of {len(queue)} peers of stage {request.first_stage} can be asked")
        self._readmit(queue, able)
        least_delay = self.config.least_delay
        chosen = min(able, key=lambda p: (queue[p].ema_s if least_delay else queue[p].virtual_s, queue[p].tie, p))
        entry = queue[chosen]
        entry.virtual_s += entry.ema_s * (1 + self.config.backward_charge)
        entry.tie = self._random.random()
        if request.is_new:
            self._flying.add(request.microbatch)
        return Route((chosen,), f"least virtual time of {len(able)}, response {entry.ema_s:.3f} s")

    def response_s(self, stage: Stage, peer: PeerId) -> float:
        """The smoothed response time that a peer is charged with."""
        return self._stages[stage][peer].ema_s

    def _readmit(self, queue: dict[PeerId, PeerQueue], able: list[PeerId]) -> None:
        """Who was away enters at the current minimum, or it would be sent everything that it has missed."""
        present = [queue[peer].virtual_s for peer in able if not queue[peer].absent]
        for peer in able:
            entry = queue[peer]
            if entry.absent:
                entry.absent = False
                entry.virtual_s = max(entry.virtual_s, min(present, default=entry.virtual_s))

    def _queue(self, stage: Stage) -> dict[PeerId, PeerQueue]:
        queue = self._stages.get(stage)
        if queue is None:
            queue = self._stages[stage] = {}
            self._refresh(stage, queue)
        return queue

    def _refresh(self, stage: Stage, queue: dict[PeerId, PeerQueue]) -> None:
        """Forget who is gone, let newcomers in."""
        peers = self._view.peers_of_stage(stage) if self._view is not None else ()
        for peer in set(queue) - set(peers):
            del queue[peer]
        least = min((entry.virtual_s for entry in queue.values()), default=0.0)
        for peer in peers:
            if peer not in queue:
                queue[peer] = PeerQueue(least, self._random.random(), self.config.initial_s)
