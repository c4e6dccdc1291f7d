"""What the seed decides: each peer's speed, capacity, region and line, and who crashes and rejoins when.

Every value has its own stream, named by the seed, the peer and the field. So the draws do not depend on each other, on the
router, or on the order in which anything happens: two arms of a comparison, and the same scenario with and without churn or
with other lines, have the same peers. `random.Random` seeded by a string gives the same numbers on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean
from typing import TypeVar

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.simulation.scenario.scenario import ChurnSpec, PeerGroup, Scenario

T = TypeVar("T")

EMBEDDING_PART = 0.1
"""Of a data peer's forward and backward seconds; the rest is its head and loss. A look-up is far cheaper than a product with
the whole vocabulary; the sum is what the scenario says."""

LOOK_S = 1e-3
"""What a thin data peer takes to hand out ids, and to hear of a loss."""


@dataclass(frozen=True, slots=True)
class DrawnPeer:
    """One peer of a scenario. `capacity` is 0 on data peers, `line_bytes_per_s` is None when lines do not limit."""

    id: PeerId
    stage: Stage
    forward_s: float
    backward_s: float
    capacity: int
    region: str
    line_bytes_per_s: float | None

    @property
    def compute_s(self) -> float:
        """Seconds of one microbatch, both passes."""
        return self.forward_s + self.backward_s

    def work_seconds(self) -> dict[Work, float]:
        """Seconds of each kind of work. Taking a counted microbatch out of the gradient costs a forward and a backward."""
        correction = {Work.UNCOUNT: self.compute_s, Work.RECOUNT: self.compute_s}
        if self.stage != DATA_STAGE:
            return {Work.FORWARD: self.forward_s, Work.BACKWARD: self.backward_s, **correction}
        embed, finish = EMBEDDING_PART * self.forward_s, EMBEDDING_PART * self.backward_s
        return {Work.EMBED: embed, Work.LOSS: self.compute_s - embed - finish, Work.FINISH: finish, **correction}


def stream(seed: int, *names: object) -> Random:
    """The random numbers of one thing."""
    return Random("/".join(str(name) for name in (seed, *names)))


def draw_peers(scenario: Scenario, seed: int) -> tuple[DrawnPeer, ...]:
    """Data peers `data_0`, ..., then stage peers `relay_1_0`, ... by stage."""
    drawn: list[DrawnPeer] = []
    for stage in range(scenario.model.stages + 1):
        index = 0
        for group in scenario.groups:
            if group.is_data is (stage == 0):
                for _ in range(group.count):
                    name = f"data_{index}" if group.is_data else f"relay_{stage}_{index}"
                    drawn.append(_draw(scenario, group, seed, Stage(stage), PeerId(name)))
                    index += 1
    return tuple(drawn)


def thinned(peers: Sequence[DrawnPeer]) -> tuple[DrawnPeer, ...]:
    """The same peers where data peers hold no weights: the first stage computes the embedding, the last one head and loss, and
    both have so many fewer layers that all stages have the same to compute (`thin_layer_split`).

    On a stage peer that work takes what it takes on the mean data peer, times how much slower or faster than the mean of its
    stage that peer is."""
    data = [peer for peer in peers if peer.stage == DATA_STAGE]
    forward_s, backward_s = (sum(times) / len(data) for times in zip(*((p.forward_s, p.backward_s) for p in data), strict=True))
    stages = max(peer.stage for peer in peers)
    mean_s = {k: mean(p.compute_s for p in peers if p.stage == k) for k in range(1, stages + 1)}
    found = []
    for peer in peers:
        speed = peer.compute_s / mean_s[peer.stage] / stages if peer.stage else 0.0
        own = (peer.forward_s, peer.backward_s) if peer.stage else (LOOK_S, LOOK_S)
        found.append(replace(peer, forward_s=own[0] + speed * forward_s, backward_s=own[1] + speed * backward_s))
    return tuple(found)


def _draw(scenario: Scenario, group: PeerGroup, seed: int, stage: Stage, peer: PeerId) -> DrawnPeer:
    def pick(field: str, values: Sequence[T]) -> T:
        return stream(seed, peer, field).choice(values)

    forward_s = pick("forward_s", group.forward_s)
    lines = scenario.links.line_bytes_per_s
    return DrawnPeer(
        id=peer,
        stage=stage,
        forward_s=forward_s,
        backward_s=pick("backward_s", group.backward_s) if group.backward_s else forward_s * group.backward_factor,
        capacity=pick("capacity", group.capacity) if group.capacity else 0,
        region=pick("region", scenario.links.table.regions) if group.region == "any" else group.region,
        line_bytes_per_s=pick("line", lines) if lines else None,
    )


@dataclass(frozen=True, slots=True)
class Fate:
    """What churn plans for one stage peer in one iteration. `moment` is the part of the iteration at which it would crash."""

    crashes: bool
    moment: float
    rejoins: bool


def draw_fate(churn: ChurnSpec, seed: int, peer: PeerId, iteration: int) -> Fate:
    """The same for every router: a crash is planned whether or not the stage peer is up then."""
    numbers = stream(seed, peer, "churn", iteration)
    crash, moment, rejoin = (numbers.random() for _ in range(3))
    return Fate(crash < churn.crash_probability, moment, rejoin < churn.rejoin_probability)
