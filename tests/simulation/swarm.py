"""A small simulated swarm for stories: n stages, m relays each, d data peers, equal links."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.context import Context
from gwtf_p2p.protocol.data_peer import DataPeer, DataPeerConfig
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.network_view import NetworkView
from gwtf_p2p.protocol.relay_peer import RelayPeer
from gwtf_p2p.protocol.routers.base import HopObservation, NoRoute, Route, RouteRequest
from gwtf_p2p.simulation.directory import Directory
from gwtf_p2p.simulation.kernel import Kernel
from gwtf_p2p.simulation.links import Links, LinkSpec
from gwtf_p2p.simulation.world import SimulatedPeer, Sizes, Speed, World


class RoundRobin:
    """Takes the peers of a stage in turn; at most `in_flight` own microbatches at once."""

    def __init__(self, in_flight: int) -> None:
        self.in_flight = in_flight
        self.view: NetworkView | None = None
        self._flying: set[object] = set()
        self._turn = 0

    def observe_view(self, view: NetworkView, now: float) -> None:
        self.view = view

    def observe_hop(self, hop: HopObservation, now: float) -> None:
        pass

    def observe_end(self, microbatch: object, now: float) -> None:
        self._flying.discard(microbatch)

    def route(self, request: RouteRequest, now: float) -> Route | NoRoute:
        if self.view is None:
            return NoRoute("no view yet")
        inject = request.after == request.microbatch.data_peer and request.microbatch not in self._flying
        if inject and len(self._flying) >= self.in_flight:
            return NoRoute("enough in flight")
        peers = []
        for stage in range(request.first_stage, request.last_stage + 1):
            able = [p for p in self.view.peers_of_stage(Stage(stage)) if p not in request.excluding]
            if not able:
                return NoRoute(f"nobody in stage {stage}")
            self._turn += 1
            peers.append(able[self._turn % len(able)])
        if inject:
            self._flying.add(request.microbatch)
        return Route(tuple(peers), "in turn")


@dataclass
class Swarm:
    world: World
    reports: list[tuple[PeerId, ev.Report, float]] = field(default_factory=list)

    def run(self, iterations: int, deadline_s: float = 600.0) -> None:
        """Until every peer that is up and in step has finished so many iterations. Fails with everybody's story otherwise."""

        def done() -> bool:
            up = [p.machine.member for p in self.world.peers.values() if p.alive and not p.frozen]
            return all(member.version >= iterations or member.out_of_step for member in up)

        ok = self.world.kernel.run(done, deadline_s)
        assert ok, self.story()

    def story(self) -> str:
        lines = [f"stuck at {self.world.kernel.now:.2f} s"]
        for peer in self.world.peers.values():
            member = peer.machine.member
            lines.append(f"{peer.id} alive={peer.alive} frozen={peer.frozen} version={member.version} closing={member.closing}")
            for held in peer.machine.ctx.in_order():
                lines.append(f"   {held.id} {held.phase.name} {held.handoff.name} {held.handback.name} -> {held.successor}")
                lines += [f"        {line}" for line in held.story[-12:]]
        lines += [f"{at:.3f} {who} {r.name} {dict(r.fields)}" for who, r, at in self.reports[-60:]]
        return "\n".join(lines)

    def count(self, name: str) -> Counter[str]:
        return Counter(str(r.fields.get("kind", "")) for _, r, _ in self.reports if r.name == name)

    def credited(self) -> Counter[tuple[int, int, str]]:
        """(iteration, stage, microbatch) -> how often it entered a committed gradient."""
        return Counter(c for p in self.world.peers.values() for c in self.commits.get(p.id, ()))

    commits: dict[PeerId, list[tuple[int, int, str]]] = field(default_factory=dict)


def build(
    stages: int = 3, relays: int = 2, data_peers: int = 1, microbatches: int = 4, capacity: int = 4, iterations: int = 0
) -> Swarm:
    kernel = Kernel()
    links = Links(kernel, lambda a, b: LinkSpec(0.01, 1e8))
    directory = Directory(stages, 1_000_000)
    swarm = Swarm.__new__(Swarm)
    world = World(kernel, links, directory, Sizes(1_000_000, 4_000_000), lambda p, r, t: swarm.reports.append((p, r, t)))
    Swarm.__init__(swarm, world)
    corrections = {ev.Work.UNCOUNT: 0.15, ev.Work.RECOUNT: 0.15}
    data_speed = Speed({ev.Work.EMBED: 0.005, ev.Work.LOSS: 0.02, ev.Work.FINISH: 0.005, **corrections})
    relay_speed = Speed({ev.Work.FORWARD: 0.05, ev.Work.BACKWARD: 0.1, **corrections})
    for d in range(data_peers):
        ctx = Context(PeerId(f"data_{d}"), DATA_STAGE, stages, RoundRobin(microbatches))
        world.add(SimulatedPeer(DataPeer(ctx, DataPeerConfig(microbatches, data_peers, iterations)), data_speed))
    for k in range(1, stages + 1):
        for r in range(relays):
            ctx = Context(PeerId(f"relay_{k}_{r}"), Stage(k), stages, RoundRobin(0))
            world.add(SimulatedPeer(RelayPeer(ctx, capacity), relay_speed))

    def note_commit(who: PeerId, event: ev.Event, now: float) -> None:
        if isinstance(event, ev.Stepped):
            machine = world.peers[who].machine
            closing = machine.member.closing
            assert closing is not None
            share = next(s for s in closing.shares if s.member == who)
            assert set(share.microbatches) == machine.member.counted, f"{who} stepped with another gradient than its share"
            line = swarm.commits.setdefault(who, [])
            line += [(event.iteration, machine.ctx.stage, str(m)) for m in share.microbatches]

    world.on_event = note_commit
    for peer in world.peers.values():
        world.start(peer)
    return swarm
