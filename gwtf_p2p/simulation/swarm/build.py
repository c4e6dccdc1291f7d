"""From a scenario, an arm and a seed to a world with all its peers, not yet started.

An *arm* is what a comparison varies: the router and its settings, and the few things that come with it (`RouterKind`).
Everything else is the scenario's and the seed's, so that arms of one seed differ in nothing else.

What peers publish of their links is what a probe of an idle link measures: true latency, and the bandwidth left by the link
and both lines. It is published for the neighbouring stages, as the live swarm's probes do (`MOST_MEASURED` at most), and ages
as all records do.
A stage peer times one microbatch of each pass before it goes online, so its first record has a measured compute time.

**Memory.** All modes but UNLIMITED fit the same memory, so a comparison may give each arm the mode that suits it. ADAPTIVE, the
default: activations are kept while the capacity lasts, and computed again before the backward where it does not; stage peers of
routers that plan with a number of flows still refuse what is over that number. LIMITED: activations are kept from forward to
backward, and a stage peer's capacity is what it has room for. Stage peers of SWARM, which know no refusal, and of `gwtf`,
whose plan says what waits where, take inputs beyond it into a queue and compute their forward when there is room: with exact
recovery inputs are kept until the commit in any case. Other routers' stage peers refuse what does not fit. STRICT: all stage
peers refuse. RECOMPUTED: no activations are kept, so nothing limits, and every backward is preceded by another forward.
UNLIMITED: kept, without limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from random import Random

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.elastic_shares import elastic_shares
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeerConfig
from gwtf_p2p.protocol.peer.factory import PeerSettings, RouterChoice, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeerConfig
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.routers.factory import RouterKind, router_kind
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.wire.records import LinkMeasurement, LinkSource
from gwtf_p2p.protocol.wire.run_parts import AuditTerms, WireSpec
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links, LinkSpec
from gwtf_p2p.simulation.scenario.draw import DrawnPeer, draw_peers, thinned
from gwtf_p2p.simulation.scenario.scenario import Scenario
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.audits import is_signed
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.population import SimulatedPeer, Speed
from gwtf_p2p.simulation.world.signatures import verify
from gwtf_p2p.simulation.world.world import World

RECORD_PERIOD_S = 10.0
PROBE_SAMPLES = 3
MOST_MEASURED = 128
"""Links in a record, which is bounded; drawn by the seed. Beyond them planners assume."""

FLOAT32 = WireSpec()


class Memory(Enum):
    """See the module docstring."""

    ADAPTIVE = "adaptive"
    LIMITED = "limited"
    STRICT = "strict"
    RECOMPUTED = "recomputed"
    UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class Arm:
    """`config` is the router's settings (see `factory.default_config`), `recovery` exact or fast, `wire` the formats in which
    tensors travel, `subspace` how many times fewer values cross a boundary, `audit` the share of hops that is done again,
    `thin` whether data peers hold no weights, `elastic` whether their shares go by their paces (`elastic_shares`), `delayed`
    whether the next iteration is computed while one is averaged (`delay_optimizer_step`), `replica_sync` every how many
    iterations copies of a stage are averaged, instead of gradients in each (0). What encoding costs a computer is left out:
    it is less than sending what it saves."""

    router: str
    config: RouterSettings
    recovery: str = "exact"
    memory: Memory = Memory.ADAPTIVE
    subspace: int = field(default=0, kw_only=True)
    wire: WireSpec = FLOAT32
    audit: float = 0.0
    thin: bool = field(default=False, kw_only=True)
    elastic: bool = field(default=False, kw_only=True)
    delayed: bool = field(default=False, kw_only=True)
    replica_sync: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Raises InputError for what does not go together."""
        if self.delayed and self.config.restarts_whole:
            raise InputError("arm", self.router, "expected no delayed steps where whole microbatches begin again")
        if self.delayed and self.replica_sync:
            raise InputError("arm", self.router, "expected delayed steps, or copies that are averaged now and then, not both")

    @property
    def kind(self) -> RouterKind:
        return router_kind(self.router)

    @property
    def queues(self) -> bool:
        """Stage peers refuse nothing."""
        queues = self.kind.unbounded_queues or self.config.queues_inputs
        return queues and self.memory is not Memory.STRICT


@dataclass
class Swarm:
    """The peers of one run and how to make one of them (again). `drawn` changes when a stage peer moves to another stage."""

    scenario: Scenario
    arm: Arm
    seed: int
    world: World
    drawn: dict[PeerId, DrawnPeer]
    _around_router: Callable[[Router], Router] | None = None

    @cached_property
    def shares(self) -> dict[PeerId, int]:
        """Microbatches of each data peer in an iteration."""
        model, arm = self.scenario.model, self.arm
        each, sizes = model.microbatches_per_data_peer, sizes_of(self.scenario, arm)
        data = [peer for peer in self.drawn.values() if peer.stage == DATA_STAGE]
        paces = [_pace(peer, sizes) for peer in data]
        shares = elastic_shares(paces, each) if arm.elastic else (each,) * len(data)
        return {peer.id: share for peer, share in zip(data, shares, strict=True)}

    @property
    def links(self) -> Links:
        return self.world.links

    def put_around_routers(self, around: Callable[[Router], Router]) -> None:
        """A stopwatch, for instance: around the router of every peer, those of peers to come included."""
        self._around_router = around
        for peer in self.world.peers.values():
            peer.machine.ctx.use_router(around(peer.machine.ctx.router))

    def new_peer(self, peer: PeerId) -> SimulatedPeer:
        """A peer as it is when its program has just been started: nothing held, nothing measured but its own speed."""
        drawn, arm, model = self.drawn[peer], self.arm, self.scenario.model
        data_peer = stage_peer = None
        timed: tuple[ev.Work, ...]
        if drawn.stage == DATA_STAGE:
            data_peer = DataPeerConfig(self.shares[peer], self.scenario.data_peers)
            timed = (ev.Work.EMBED, ev.Work.LOSS, ev.Work.FINISH)
        else:
            recomputes = arm.memory is Memory.ADAPTIVE and arm.queues
            stage_peer = StagePeerConfig(drawn.capacity, arm.queues, recomputes, arm.config.moves)
            timed = (ev.Work.FORWARD, ev.Work.BACKWARD)
        settings = PeerSettings(
            me=peer,
            stage=drawn.stage,
            stages=model.stages,
            router=RouterChoice(arm.router, arm.config, self.seed),
            exact=arm.recovery == "exact",
            data_peer=data_peer,
            stage_peer=stage_peer,
            life=RunLife(self.scenario.iterations, stays=True, ahead=int(arm.delayed), replica_sync=arm.replica_sync),
            audit=AuditTerms(arm.audit),
            microbatches=max(self.shares.values()),
        )
        machine = compose(settings, verify=verify, signed_by=is_signed)
        if self._around_router is not None:
            machine.ctx.use_router(self._around_router(machine.ctx.router))
        seconds = drawn.work_seconds()
        machine.measured({work: seconds[work] for work in timed})
        simulated = SimulatedPeer(machine, Speed(seconds), line_bytes_per_s=drawn.line_bytes_per_s or 0.0)
        simulated.links = tuple(self._measure(peer, other) for other in self._neighbours(peer, drawn.stage))
        former = self.world.peers.get(peer)
        if former is not None:
            simulated.sequence, simulated.device_s = former.sequence, former.device_s
        return simulated

    def restart(self, peer: PeerId) -> None:
        """Start a program that has ended, without weights."""
        former, simulated = self.world.peers[peer], self.new_peer(peer)
        assert not former.alive, f"{peer} is running"
        former.kept = []
        self.world.add(simulated)
        self.world.start(simulated)

    def _neighbours(self, of: PeerId, stage: Stage) -> list[PeerId]:
        """Peers of the stages before and after; stage 0 follows stage S. Data peers also talk with each other. A record has
        room for the links to a part of a large stage."""
        ring = self.scenario.model.stages + 1
        near = sorted({(stage + 1) % ring, (stage - 1) % ring} | ({DATA_STAGE} if stage == DATA_STAGE else set()))
        peers = sorted(peer for k in near for peer in self._in_stages.get(Stage(k), ()) if peer != of)
        return peers if len(peers) <= MOST_MEASURED else sorted(Random(f"{self.seed} {of}").sample(peers, MOST_MEASURED))

    @cached_property
    def _in_stages(self) -> dict[Stage, list[PeerId]]:
        found: dict[Stage, list[PeerId]] = {}
        for peer, drawn in self.drawn.items():
            found.setdefault(drawn.stage, []).append(peer)
        return found

    def move(self, peer: PeerId, stage: Stage) -> None:
        """It belongs to another stage from its next start on."""
        self.drawn[peer] = replace(self.drawn[peer], stage=stage)
        vars(self).pop("_in_stages", None)

    def _measure(self, sender: PeerId, receiver: PeerId) -> LinkMeasurement:
        links = self.links
        round_trip_s = links.latency_s(sender, receiver) + links.latency_s(receiver, sender)
        bandwidth = links.idle_bandwidth(sender, receiver)
        return LinkMeasurement(receiver, round_trip_s, bandwidth, LinkSource.PROBE, PROBE_SAMPLES, 0.0)


def build(scenario: Scenario, arm: Arm, seed: int, on_report: Callable[[PeerId, ef.Report, float], None]) -> Swarm:
    """All peers added to the world, none started."""
    peers = draw_peers(scenario, seed)
    peers = thinned(peers) if arm.thin else peers
    drawn = {peer.id: _with_memory(peer, arm.memory, scenario) for peer in peers}
    kernel = Kernel()
    lines = {peer.id: peer.line_bytes_per_s for peer in drawn.values() if peer.line_bytes_per_s is not None}
    links = Links(kernel, _specs(scenario, {peer.id: peer.region for peer in drawn.values()}), lines)
    model = scenario.model
    sizes = sizes_of(scenario, arm)
    if arm.delayed:  # a state has the weights of the version before, too
        sizes = replace(sizes, state_bytes=sizes.state_bytes + model.stage_gradient_bytes)
    directory = Directory(model.stages, sizes.activation_bytes, sizes.gradient_bytes, end_bytes=sizes.end_bytes)
    world = World(kernel, links, directory, sizes, on_report, RECORD_PERIOD_S)
    world.pushes.star, world.rounds.beside_work = arm.kind.star, arm.delayed
    swarm = Swarm(scenario, arm, seed, world, drawn)
    for peer in drawn:
        world.add(swarm.new_peer(peer))
    return swarm


def sizes_of(scenario: Scenario, arm: Arm) -> Sizes:
    """What peers send each other."""
    sync = ReplicaSync(arm.replica_sync, scenario.iterations)
    return Sizes.of(scenario.model, arm.wire, arm.subspace, arm.thin, sync)


def _pace(peer: DrawnPeer, sizes: Sizes) -> float:
    """Microbatches a second of a data peer, by its device and by its line, which each crosses twice each way."""
    hops, line = sizes.hops, peer.line_bytes_per_s or float("inf")
    most_bytes = max(hops.forth(0) + hops.back(sizes.stages), hops.forth(sizes.stages) + hops.back(0))
    return 1 / max(peer.compute_s, most_bytes / line)


def _with_memory(peer: DrawnPeer, memory: Memory, scenario: Scenario) -> DrawnPeer:
    """What cannot be exceeded does not limit: all microbatches of an iteration at one stage peer."""
    if peer.stage == DATA_STAGE or memory in (Memory.ADAPTIVE, Memory.LIMITED, Memory.STRICT):
        return peer
    capacity = scenario.data_peers * scenario.model.microbatches_per_data_peer
    again_s = peer.forward_s if memory is Memory.RECOMPUTED else 0.0
    return replace(peer, capacity=capacity, backward_s=peer.backward_s + again_s)


def _specs(scenario: Scenario, region: Mapping[PeerId, str]) -> Callable[[PeerId, PeerId], LinkSpec]:
    known = {(a, b): scenario.links.between(a, b) for a in set(region.values()) for b in set(region.values())}
    return lambda sender, receiver: known[region[sender], region[receiver]]
