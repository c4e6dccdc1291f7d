"""Stage peers that come and go by the clock, whatever an iteration takes: a seed's diary is the same for every router.

A stage peer is up for a drawn time, then down, and so on: times of equal mean, memoryless, or *heavy-tailed* (Pareto), where
many leave soon and a few stay for very long, as volunteers do. A *region goes dark*: all its stage peers crash at one moment,
and come back together. A stage peer is *slow* for a while: it is alive and answers, and computes several times as long.

As in `churn`, a crash is a killed process, who comes back has no weights, and a stage peer is spared when no other of its stage
is up and in step; it leaves with the next crash of its diary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.simulation.scenario.draw import stream
from gwtf_p2p.simulation.scenario.scenario import TimedChurnSpec
from gwtf_p2p.simulation.swarm.build import Swarm
from gwtf_p2p.simulation.swarm.churn import SimulatedStagePeers
from gwtf_p2p.simulation.world.population import Speed


@dataclass
class TimedChurn:
    """Acts out a spec on a swarm. `crashes`, `returns` and `spared` count what has happened."""

    spec: TimedChurnSpec
    swarm: Swarm
    crashes: int = 0
    returns: int = 0
    spared: int = 0
    _dark: set[str] = field(default_factory=set)
    _away: set[PeerId] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stage_peers = SimulatedStagePeers(self.swarm)

    def start(self) -> None:
        """Everybody is up now."""
        spec, seed = self.spec, self.swarm.seed
        peers = [peer for peer, drawn in self.swarm.drawn.items() if drawn.stage != DATA_STAGE]
        for peer in peers:
            if spec.uptime_s:
                self._goes(peer, stream(seed, peer, "diary"))
            if spec.slow_every_s:
                self._slows(peer, stream(seed, peer, "slow"))
        if spec.dark_every_s:
            for region in sorted({self.swarm.drawn[peer].region for peer in peers}):
                self._darkens(region, stream(seed, region, "dark"))

    def up_s(self, numbers: Random) -> float:
        """How long a stage peer stays, once."""
        mean_s, tail = self.spec.uptime_s, self.spec.tail
        if not tail:
            return numbers.expovariate(1 / mean_s)
        return mean_s * (tail - 1) / tail * numbers.paretovariate(tail)

    # ---- one after the other

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.swarm.world.kernel.after(delay_s, action)

    def _goes(self, peer: PeerId, numbers: Random) -> None:
        def goes() -> None:
            self._away.add(peer)
            self._crash(peer)
            self._after(numbers.expovariate(1 / self.spec.downtime_s), comes)

        def comes() -> None:
            self._away.discard(peer)
            self._come_back(peer)
            self._goes(peer, numbers)

        self._after(self.up_s(numbers), goes)

    def _darkens(self, region: str, numbers: Random) -> None:
        def dark() -> None:
            self._dark.add(region)
            for peer in self._in(region):
                self._crash(peer)
            self._after(self.spec.dark_s, light)

        def light() -> None:
            self._dark.discard(region)
            for peer in self._in(region):
                self._come_back(peer)
            self._darkens(region, numbers)

        self._after(numbers.expovariate(1 / self.spec.dark_every_s), dark)

    def _slows(self, peer: PeerId, numbers: Random) -> None:
        def slow() -> None:
            self._compute_at(peer, self.spec.slow_factor)
            self._after(self.spec.slow_s, fast)

        def fast() -> None:
            self._compute_at(peer, 1.0)
            self._slows(peer, numbers)

        self._after(numbers.expovariate(1 / self.spec.slow_every_s), slow)

    # ---- what happens

    def _in(self, region: str) -> list[PeerId]:
        return [p for p, drawn in self.swarm.drawn.items() if drawn.stage != DATA_STAGE and drawn.region == region]

    def _crash(self, peer: PeerId) -> None:
        stages = self._stage_peers.stages()
        if self._stage_peers.is_down(peer):
            return
        if any(self._stage_peers.is_online(other) for other, at in stages.items() if other != peer and at == stages[peer]):
            self.crashes += 1
            self._stage_peers.crash(peer)
        else:
            self.spared += 1

    def _come_back(self, peer: PeerId) -> None:
        """Unless something else keeps it away."""
        is_kept = peer in self._away or self.swarm.drawn[peer].region in self._dark
        if not is_kept and self._stage_peers.is_down(peer):
            self.returns += 1
            self._stage_peers.come_back(peer)

    def _compute_at(self, peer: PeerId, factor: float) -> None:
        """Times of work as drawn, times this. Who is started again meanwhile is as fast as ever."""
        seconds = self.swarm.drawn[peer].work_seconds()
        self.swarm.world.peers[peer].speed = Speed({work: s * factor for work, s in seconds.items()})
