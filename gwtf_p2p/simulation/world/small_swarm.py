"""A small swarm on equal links, for stories and sweeps of faults: n stages, m stage peers each, d data peers, no scenario
file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL
from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.core.lifecycle import done_bytes
from gwtf_p2p.protocol.core.router import HopObservation, NoRoute, Route, Router, RouteRequest
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer, DataPeerConfig
from gwtf_p2p.protocol.peer.factory import PeerSettings, compose
from gwtf_p2p.protocol.peer.stage_peer import StagePeerConfig
from gwtf_p2p.protocol.replica_sync import ReplicaSync
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.view.plans import IterationPlan, PlanRequest
from gwtf_p2p.protocol.wire.run_parts import AuditTerms
from gwtf_p2p.protocol.wire.signed import EntryTerms
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links, LinkSpec
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.audits import is_signed
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.faults import Fault, Faults
from gwtf_p2p.simulation.world.invariants import Invariants, Tally
from gwtf_p2p.simulation.world.population import SimulatedPeer, Speed
from gwtf_p2p.simulation.world.signatures import verify
from gwtf_p2p.simulation.world.world import World

LATENCY_S = 0.01
FORWARD_S, BACKWARD_S = 0.05, 0.1
MICROBATCH_BYTES = 1_000_000
BYTES_PER_S = 1e8
SETTLES_IN = 2
"""So many iterations after a partition all have the same weights: both sides may have trained on meanwhile."""
STEPS_BETWEEN_LOOKS = 16
"""Looking at every peer after every step would take most of the time."""


class StuckError(AssertionError):
    """A run does not come to its end: every peer's story is in the message."""


class RoundRobin:
    """Takes the peers of a stage in turn; at most `in_flight` own microbatches at once."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.view: NetworkView | None = None
        self._flying: set[MicrobatchId] = set()
        self._turns: Counter[int] = Counter()

    def observe_view(self, view: NetworkView, now: float) -> None:
        self.view = view

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        pass

    def observe_end(self, microbatch: MicrobatchId, now: float) -> None:
        self._flying.discard(microbatch)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        if self.view is None:
            return NoRoute("no view yet")
        if request.is_new and len(self._flying) >= self.in_flight:
            return NoRoute("enough in flight")
        peers = []
        for stage in range(request.first_stage, request.last_stage + 1):
            able = [p for p in self.view.peers_of_stage(Stage(stage)) if p not in request.excluding]
            if not able:
                return NoRoute(f"nobody in stage {stage}")
            self._turns[stage] += 1
            peers.append(able[self._turns[stage] % len(able)])
        if request.is_new:
            self._flying.add(request.microbatch)
        return Route(tuple(peers), "in turn")


class InTurnByPlan(RoundRobin):
    """The same, said to be a plan: what waits is handed over to newcomers (`protocol/transfer/rebinding`)."""

    flows: tuple[int, tuple[str, ...]] = (-1, ())

    @property
    def counts(self) -> dict[str, int]:
        return {}

    def revised(self, microbatch: MicrobatchId, stage: Stage) -> tuple[PeerId, ...]:
        return ()

    def planning(self, without: frozenset[PeerId], now: float) -> PlanRequest | None:
        return None

    def planned(self, plan: IterationPlan | None) -> None:
        """Nothing was asked for."""


@dataclass(frozen=True, slots=True)
class SmallConfig:
    """`speeds`: how many times slower than the usual 0.05 s + 0.1 s a stage peer is, drawn by seed. `iterations` 0: no end.
    `router` makes each peer's router from the microbatches that it may have in flight. `plans`: routes count as planned
    (`InTurnByPlan`).
    `max_skipped_steps` 0: it never pauses. `checkpoint_every` 0: what the world keeps of every iteration is all; `ends`:
    programs end when the run is complete; `certifies`: commits are proven; `rebuilds`: a stage that is lost is rebuilt.
    `audit`: the share of hops that is done again. `losses`: what the first data peer finds when it evaluates a version, which
    it does for each of them (NaN: not finite); `patience` and `replica_sync` as in the run's record; `ahead` 1: steps are
    delayed. Of more than `all_with_all` peers a stage averages in rows. A stage's state takes as long to fetch as
    `state_microbatches` tensors of microbatches, its weights a third of that.
    """

    stages: int = 3
    stage_peers: int = 2
    data_peers: int = 1
    microbatches: int = 4
    capacity: int = 4
    iterations: int = 0
    exact: bool = True
    speeds: tuple[float, ...] = (1.0,)
    memory_microbatches: int = 0
    moves: bool = False
    plans: bool = False
    router: Callable[[int], Router] = RoundRobin
    checkpoint_every: int = 0
    ends: bool = False
    max_skipped_steps: int = 0
    rebuilds: bool = False
    certifies: bool = True
    audit: float = 0.0
    losses: Callable[[int], float] | None = None
    patience: int = 0
    ahead: int = 0
    seed: int = 0
    replica_sync: int = 0
    terms: EntryTerms = field(default_factory=EntryTerms)
    all_with_all: int = MOST_ALL_WITH_ALL
    state_microbatches: int = 12


@dataclass
class SmallSwarm:
    """A running swarm with its invariants, its faults and everything that was reported."""

    config: SmallConfig
    world: World
    reports: list[tuple[PeerId, ef.Report, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.invariants = Invariants(self.world, self.config.stages, self.config.exact)
        self.faults = Faults(self.world, self.new_peer)
        self.world.on_event = self._before_event
        self.world.on_effect = self.faults.before_effect
        self.world.on_end = lambda peer: self.leave(self.world.peers[peer])
        self.world.on_move = lambda peer, stage: self.world.kernel.after(0.0, lambda: self.move(peer, stage))
        self.stages: dict[PeerId, Stage] = {}
        self._random = Random(self.config.seed)

    def _before_event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        self.invariants.before_event(peer, event, now)
        self.faults.before_event(peer, event, now)

    def new_peer(self, peer: PeerId) -> SimulatedPeer:
        """As it is when its program has just been started."""
        config = self.config
        life = RunLife(
            config.iterations,
            config.checkpoint_every,
            stays=not config.ends,
            max_skipped_steps=config.max_skipped_steps,
            rebuilds=config.rebuilds,
            patience=config.patience,
            ahead=config.ahead,
            replica_sync=config.replica_sync,
        )
        kind, *numbers = peer.split("_")
        verifies = verify if config.certifies else None
        audited = AuditTerms(config.audit)
        router = InTurnByPlan if config.plans else config.router
        corrections = {ev.Work.UNCOUNT: BACKWARD_S * 1.5, ev.Work.RECOUNT: BACKWARD_S * 1.5}
        if kind == "data":
            own = DataPeerConfig(config.microbatches, config.data_peers)
            settings = PeerSettings(
                peer, DATA_STAGE, config.stages, None, config.exact, data_peer=own, life=life, terms=config.terms, audit=audited
            )
            speed = Speed({ev.Work.EMBED: 0.005, ev.Work.LOSS: 0.02, ev.Work.FINISH: 0.005, **corrections})
            settings = replace(settings, all_with_all=config.all_with_all)
            return SimulatedPeer(compose(settings, router(config.microbatches), verifies, is_signed), speed)
        one = done_bytes(MICROBATCH_BYTES, MICROBATCH_BYTES)
        settings = PeerSettings(
            me=peer,
            stage=self.stages.get(peer, Stage(int(numbers[0]))),
            stages=config.stages,
            router=None,
            exact=config.exact,
            done_bytes=one,
            memory_limit_bytes=config.memory_microbatches * one,
            stage_peer=StagePeerConfig(config.capacity, moves=config.moves),
            life=life,
            terms=config.terms,
            audit=audited,
            microbatches=config.microbatches,
            all_with_all=config.all_with_all,
        )
        factor = self._random.choice(config.speeds)
        seconds = {ev.Work.FORWARD: FORWARD_S, ev.Work.BACKWARD: BACKWARD_S, **corrections}
        return SimulatedPeer(
            compose(settings, router(0), verifies, is_signed),
            Speed({w: s * factor for w, s in seconds.items()}),
        )

    def move(self, peer: PeerId, stage: Stage) -> None:
        """It begins anew in another stage, with the copies of that stage's checkpoints that its neighbours keep."""
        there = [p for p in self.world.peers.values() if p.machine.ctx.stage == stage]
        self.world.kill(peer)
        self.stages[peer] = stage
        former, newest = self.world.peers[peer], max(there, key=lambda p: p.kept, default=None)
        former.kept = self.world.weights.copies.on_disk(newest.kept) if newest is not None else []
        former.copies, former.epoch = newest.copies.copy() if newest is not None else {}, 0
        self.faults.restart(peer, fresh=False)

    def leave(self, peer: SimulatedPeer) -> None:
        """The program of a peer that has drained ends."""
        if peer.alive and self.world.peers[peer.id] is peer:
            self.world.kill(peer.id)

    @property
    def stage_peers(self) -> list[PeerId]:
        return [peer for peer in self.world.peers if peer.startswith("relay")]

    def inject(self, *script: Fault) -> None:
        self.faults.inject(script)

    def run(self, iterations: int, deadline_s: float = 600.0, most_steps: int = 1_000_000) -> Tally:
        """Until every honest peer that is up has finished so many iterations, and some after a partition. Raises StuckError
        with all stories otherwise."""
        kernel = self.world.kernel

        def done() -> bool:
            if kernel.steps > most_steps:
                raise StuckError(f"no end after {most_steps} steps\n{self.story()}")
            if kernel.steps % STEPS_BETWEEN_LOOKS:
                return False
            cheats = self.world.audits.cheats
            if self.world.links.partition.side or kernel.now < self.faults.parted_until:
                return False
            up = [p.machine for p in self.world.peers.values() if p.alive and not p.frozen and p.id not in cheats]
            last = max(iterations, self.world.reunited_at + SETTLES_IN)
            return bool(up) and all(m.participant.version >= last and not m.participant.out_of_step for m in up)

        if not kernel.run(done, deadline_s):
            raise StuckError(self.story())
        return self.invariants.check()

    def count(self, name: str) -> Counter[str]:
        """Reports of this name by their kind."""
        return Counter(str(r.fields.get("kind", "")) for _, r, _ in self.reports if r.name == name)

    def reported(self, name: str) -> list[tuple[PeerId, ef.Report, float]]:
        return [line for line in self.reports if line[1].name == name]

    def story(self, last: int = 80) -> str:
        """For the one who has to find out why nothing moves."""
        lines = [f"stuck at {self.world.kernel.now:.2f} s; {self.config}"]
        lines += [f"fired at {at:.3f} s: {fault}" for at, fault in self.faults.fired]
        for peer in self.world.peers.values():
            machine, participant = peer.machine, peer.machine.participant
            lines.append(
                f"{peer.id} alive={peer.alive} frozen={peer.frozen} {machine.membership.published_state.name} "
                f"version={participant.version} weights={participant.weights} "
                f"preparing={participant.preparing is not None} prepared={participant.share.prepared} "
                f"counted={len(participant.share.counted)} lost={sorted(machine.ctx.liveness.lost)} "
                f"running={machine.computing.running}"
            )
            if isinstance(machine, DataPeer):
                coordinator = machine.coordinator
                lines.append(
                    f"   begun={machine.begun} {machine.finishing.ledger} admitted={machine.membership.admitted} "
                    f"coordinator={coordinator.roster.coordinator()} data_peers={coordinator.roster.data_peers()} "
                    f"finished={sorted(coordinator.finished)}"
                    f" attempt={coordinator.under_way.attempt is not None} "
                    f"inquiry={coordinator.inquiry and coordinator.inquiry.waiting_for()}"
                )
            for held in machine.ctx.in_order():
                lines.append(
                    f"   {held.id} {held.attempt} {held.phase.name} {held.sending.name} {held.returning.name} "
                    f"{held.predecessor} -> {held.successor}"
                )
                lines += [f"        {line}" for line in held.story[-8:]]
        lines += [f"{at:.3f} {who} {r.name} {dict(r.fields)}" for who, r, at in self.reports[-last:]]
        return "\n".join(lines)


def every_moment(config: SmallConfig, iteration: int, peers: str, of: str) -> dict[PeerId, int]:
    """How many events (or effects) each peer of this kind has in an iteration without faults: when it could fail."""
    counts: Counter[PeerId] = Counter()
    swarm = small_swarm(config)

    def count(peer: PeerId, *_: object) -> None:
        if (peer in swarm.stage_peers) == (peers == "stage") and swarm.world.peers[
            peer
        ].machine.participant.version == iteration:
            counts[peer] += 1

    def count_event(peer: PeerId, event: ev.Event, now: float) -> None:
        count(peer)
        swarm.invariants.before_event(peer, event, now)

    if of == "event":
        swarm.world.on_event = count_event
    else:
        swarm.world.on_effect = count
    swarm.run(iteration + 1)
    return dict(counts)


def small_swarm(config: SmallConfig, script: Sequence[Fault] = ()) -> SmallSwarm:
    """All peers started."""
    kernel = Kernel()
    links = Links(kernel, lambda a, b: LinkSpec(LATENCY_S, BYTES_PER_S))
    directory = Directory(config.stages, MICROBATCH_BYTES, MICROBATCH_BYTES)
    reports: list[tuple[PeerId, ef.Report, float]] = []
    sync = ReplicaSync(config.replica_sync, config.iterations)
    state_bytes = config.state_microbatches * MICROBATCH_BYTES
    sizes = Sizes(
        MICROBATCH_BYTES, MICROBATCH_BYTES, 4 * MICROBATCH_BYTES, state_bytes, sync=sync, weights_bytes=state_bytes // 3
    )

    def on_report(peer: PeerId, report: ef.Report, now: float) -> None:
        reports.append((peer, report, now))
        if report.name == "drained":
            kernel.after(LATENCY_S, lambda leaver=world.peers[peer]: swarm.leave(leaver))  # type: ignore[misc]

        elif report.name == "iteration_begins" and peer == "data_0" and config.losses is not None:
            version = int(str(report.fields["iteration"]))
            loss = config.losses(version)
            found = ev.Evaluated(version, loss if math.isfinite(loss) else None)
            kernel.after(0.0, lambda at=world.peers[peer]: world.population.feed(at, found))  # type: ignore[misc]

    world = World(kernel, links, directory, sizes, on_report)
    world.messages.signs = config.certifies
    swarm = SmallSwarm(config, world, reports)
    names = [f"data_{d}" for d in range(config.data_peers)]
    names += [f"relay_{k}_{r}" for k in range(1, config.stages + 1) for r in range(config.stage_peers)]
    for name in names:
        world.add(swarm.new_peer(PeerId(name)))
    swarm.inject(*script)
    for peer in list(world.peers.values()):
        world.start(peer)
    return swarm
