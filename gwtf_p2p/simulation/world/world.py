"""Interpreter 1 of the protocol: the same state machines as in the live swarm, in virtual time.

It carries out effects and reports what came of them; it decides nothing. What it models: one-way latency and shared bandwidth
of every transfer (`links`, `pushes`), one computation at a time per peer (`computers`), small messages that take a latency and
no line (`small_messages`), records that become visible late (`publication`, `directory`), all-reduce time in a stage group
(over lines that are idle by then; `rounds`), state downloads (`weights`), and these faults: a peer is *killed* (its connections
break), *frozen* (it stops and stays silent, as under SIGSTOP) or *thawed*; the network is *partitioned* for a while. With
`pushes.star` every tensor that goes from stage peer to stage peer is stored and forwarded by its data peer: SWARM's first data
plane.
"""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.schedule.iteration_plan import make_plan
from gwtf_p2p.protocol.wire.messages import Prepare
from gwtf_p2p.protocol.wire.signed import Order
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import REQUEST_TIMEOUT_S, Links
from gwtf_p2p.simulation.lines.rounds import Rounds
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.audits import SimulatedAudits
from gwtf_p2p.simulation.world.computers import Computers
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer
from gwtf_p2p.simulation.world.publication import Publication
from gwtf_p2p.simulation.world.pushes import Pushes
from gwtf_p2p.simulation.world.small_messages import SmallMessages
from gwtf_p2p.simulation.world.spans import Spans
from gwtf_p2p.simulation.world.weights import Weights


class World:
    """Peers, links and virtual time. `on_report(peer, report, now)` hears what the machines report. `reunited_at`: the latest
    iteration of any peer when the network was whole again."""

    def __init__(
        self,
        kernel: Kernel,
        links: Links,
        directory: Directory,
        sizes: Sizes,
        on_report: Callable[[PeerId, ef.Report, float], None],
        record_period_s: float = 10.0,
    ) -> None:
        self.kernel, self.links, self.directory = kernel, links, directory
        self.population = population = Population(kernel, links, self._before_event, self._carry_out)
        self.peers = population.peers
        self.on_event: Callable[[PeerId, ev.Event, float], None] | None = None
        self.on_effect: Callable[[PeerId], None] | None = None
        self.on_fault: Callable[[PeerId, float, float], None] = lambda peer, uncommitted_s, now: None
        self.on_move: Callable[[PeerId, Stage], None] = lambda peer, stage: None
        self.on_end: Callable[[PeerId], None] = lambda peer: None
        self.make_plan = make_plan
        self.reunited_at = 0
        self._on_report = on_report
        self.spans = Spans(kernel, sizes)
        self.messages = SmallMessages(population)
        self.pushes = Pushes(population, sizes, self.spans.pushed)
        self.computers = Computers(population, self.spans)
        self._publication = Publication(population, directory, record_period_s)
        self.rounds = Rounds(links, sizes.averaged_in, population.tell)
        self.rounds.on_done = self.spans.averaged
        self.weights = Weights(population, sizes, directory.has_record_of)
        self.rounds.state_of = self.weights.state_of
        self._orders: tuple[Order, ...] = ()
        self.audits = SimulatedAudits(population, sizes)
        self.computers.differs = self.audits.differs

    # ---- peers and faults

    def add(self, peer: SimulatedPeer) -> None:
        """A new peer, or one that was killed and is to start again."""
        former = self.peers.get(peer.id)
        if former is not None:
            peer.kept, peer.contributions, peer.epoch = former.kept, former.contributions, former.epoch
            peer.evaluations, peer.copies = former.evaluations, former.copies
        self.peers[peer.id] = peer

    def start(self, peer: SimulatedPeer, weights_version: int = 0) -> None:
        """Bring a peer up: it starts, publishes, and looks at the records from now on."""
        if weights_version not in peer.kept:
            peer.kept.append(weights_version)
        evaluations = peer.evaluations.get(weights_version)
        self.population.feed(
            peer, ev.Started(weights_version, epoch=peer.epoch, kept=tuple(peer.kept), evaluations=evaluations)
        )
        if self._orders:
            self.population.feed(peer, ev.Ordered(self._orders))
        self._publication.keep_publishing(peer)
        self._publication.show(peer)

    def kill(self, peer_id: PeerId) -> None:
        """The process is gone; its connections break at once."""
        peer = self.peers[peer_id]
        peer.alive = False
        cut_off_s = self.computers.cut_off(peer)
        self.on_fault(peer_id, peer.machine.accounts.uncommitted_s + cut_off_s, self.kernel.now)
        self.pushes.peer_gone(peer_id)
        for other in self.peers.values():
            if peer_id in other.watching and not self.links.partition.separates(peer_id, other.id):
                other.watching.discard(peer_id)
                self.population.later(other.id, peer_id, ev.WatchBroken(peer_id, "connection reset"))
        self.rounds.peer_gone(peer_id)
        self.weights.peer_gone(peer_id)
        peer.kept = self.weights.copies.on_disk(peer.kept)

    def freeze(self, peer_id: PeerId) -> None:
        """The process is stopped: it says nothing and computes nothing, and its connections stay open."""
        self.peers[peer_id].frozen = True
        self.on_fault(peer_id, 0.0, self.kernel.now)
        self.kernel.after(REQUEST_TIMEOUT_S, lambda: self._silent(peer_id))

    def _silent(self, peer: PeerId) -> None:
        if self.peers[peer].frozen:
            self.weights.donor_silent(peer)

    def order(self, *orders: Order) -> None:
        """The run's owner or an admin says who may take part: those that are up hear of it, and whoever starts later."""
        self._orders += orders
        for peer in list(self.peers.values()):
            if peer.alive and not peer.frozen:
                self.population.feed(peer, ev.Ordered(self._orders))

    def drain(self, peer_id: PeerId) -> None:
        """Its user wants to stop."""
        self.population.feed(self.peers[peer_id], ev.DrainRequested())

    def thaw(self, peer_id: PeerId) -> None:
        """It goes on, and hears first what has waited for it."""
        peer = self.peers[peer_id]
        peer.frozen = False
        waiting, peer.waiting = peer.waiting, []
        for event in waiting:
            self.population.feed(peer, event)
        self._publication.show(peer)

    def partition(self, side: frozenset[PeerId]) -> None:
        """From now on nothing gets from these peers to the others, or back; connections stay open, and silent. Not modelled:
        answers that are on their way just then, which arrive; and audits."""
        self.links.partition.begin(side)
        self._publication.partitioned()
        self.pushes.partitioned()
        self.rounds.partitioned()
        self.weights.partitioned()

    def reunite(self) -> None:
        """The network is whole again."""
        self.links.partition.end()
        self._publication.reunited()
        self.reunited_at = max(peer.machine.participant.version for peer in self.peers.values())

    # ---- events in, effects out

    def _before_event(self, peer: PeerId, event: ev.Event) -> None:
        if self.on_event is not None:
            self.on_event(peer, event, self.kernel.now)

    def _carry_out(self, peer: SimulatedPeer, effect: ef.Effect) -> None:
        """What a peer that has died meanwhile wanted to do is not done."""
        if self.on_effect is not None:
            self.on_effect(peer.id)
        if not peer.alive:
            return
        match effect:
            case ef.Push():
                self.pushes.push(peer.id, effect)
            case ef.CancelPush(token):
                self.pushes.cancel((peer.id, token))
            case ef.Send(to, message):
                self.messages.send(peer, to, message)
            case ef.Ask():
                self.messages.ask(peer, effect)
            case ef.Compute():
                self.computers.compute(peer, effect)
            case ef.StartTimer(name, delay_s):
                self.computers.start_timer(peer, name, delay_s)
            case ef.CancelTimer(name):
                peer.timers.pop(name, None)
            case ef.Watch(other):
                self._watch(peer, other)
            case ef.Unwatch(other):
                peer.watching.discard(other)
            case ef.Average(prepare):
                self._average(peer, prepare)
            case ef.CancelAverage(iteration, attempt):
                self.rounds.withdraw(peer.id, iteration, attempt)
            case ef.Step():
                self.weights.step(peer, effect)
            case ef.Download():
                self.weights.download(peer, effect)
            case ef.Plan(request):
                self.population.feed(peer, ev.Planned(self.make_plan(request)))
            case ef.Checkpoint(version, evaluations):
                peer.evaluations[version] = evaluations
                self.kernel.after(0.0, lambda: self.population.feed(peer, ev.Checkpointed(version)))
            case ef.MoveTo(stage):
                self.on_move(peer.id, stage)
            case ef.End():
                self.on_end(peer.id)
            case ef.Publish():
                self._publication.publish(peer)
            case ef.Sign() | ef.Digest() | ef.Gather() | ef.DropGathered():
                self.audits.carry_out(peer, effect)
            case ef.Report():
                self._on_report(peer.id, effect, self.kernel.now)
            case ef.Answer() | ef.AnswerCheck() | ef.Discard() | ef.DropActivations() | ef.Bar():
                pass  # answers are read by whoever fed the event; there are no tensors to free, nor connections to end

    def _watch(self, peer: SimulatedPeer, other: PeerId) -> None:
        if not self.peers[other].alive:
            self.population.later(peer.id, other, ev.WatchBroken(other, "connection refused"), hops=2)
        else:
            peer.watching.add(other)

    def _average(self, peer: SimulatedPeer, prepare: Prepare) -> None:
        self.weights.copies.averages(peer.id, prepare)
        self.rounds.join(peer.id, prepare, [m for m in prepare.participants if not self.peers[m].alive])
