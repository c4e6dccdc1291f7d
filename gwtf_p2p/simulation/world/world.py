"""Interpreter 1 of the protocol: the same state machines as in the live swarm, in virtual time.

This module carries out effects and reports what came of them; it decides nothing. What it models: one-way latency and shared
bandwidth of every transfer (`links`), one computation at a time per peer, small messages that take a latency and no line,
records that become visible late (`directory`), all-reduce time in a stage group (over lines that are idle by then), and
three faults: a peer is *killed* (its connections break), *frozen* (it stops and stays silent, as under SIGSTOP) or *thawed*.
With `pushes.star` every tensor that goes from stage peer to stage peer is stored and forwarded by its data peer: SWARM's first
data plane.
"""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.protocol.schedule.iteration_plan import make_plan
from gwtf_p2p.protocol.wire.messages import Check, ControlMessage, Prepare
from gwtf_p2p.simulation.lines.downloads import Downloads, Request
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links
from gwtf_p2p.simulation.lines.rounds import Rounds
from gwtf_p2p.simulation.measure.trace import Span
from gwtf_p2p.simulation.world.directory import Directory
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer, Sizes
from gwtf_p2p.simulation.world.pushes import Pushes

KEPT_VERSIONS = 4
"""Checkpoints that a peer keeps, what it works with included."""

REQUEST_TIMEOUT_S = 3.0
"""After which an unanswered small message counts as failed, as in the live transport."""


class World:
    """Peers, links and virtual time. `on_report(peer, report, now)` hears what the machines report."""

    def __init__(
        self,
        kernel: Kernel,
        links: Links,
        directory: Directory,
        sizes: Sizes,
        on_report: Callable[[PeerId, ef.Report, float], None],
        record_period_s: float = 10.0,
    ) -> None:
        self.kernel, self.links, self.directory, self.sizes = kernel, links, directory, sizes
        self._population = Population(kernel, links, self._before_event, self.carry_out)
        self.peers = self._population.peers
        self.messages = 0
        self.on_event: Callable[[PeerId, ev.Event, float], None] | None = None
        self.on_effect: Callable[[PeerId], None] | None = None
        self.on_span: Callable[[Span], None] | None = None
        self.on_fault: Callable[[PeerId, float, float], None] = lambda peer, uncommitted_s, now: None
        self.on_move: Callable[[PeerId, Stage], None] = lambda peer, stage: None
        self.make_plan = make_plan
        self._on_report = on_report
        self._record_period_s = record_period_s
        self._shown_at = -1.0
        self._timers = 0
        self.pushes = Pushes(self._population, sizes, self._note_push)
        self._rounds = Rounds(links, sizes.stage_gradient_bytes, self._tell)
        self._rounds.on_done = self._averaged
        self._downloads = Downloads(links)

    # ---- peers and faults

    def add(self, peer: SimulatedPeer) -> None:
        """A new peer, or one that was killed and is to start again."""
        former = self.peers.get(peer.id)
        if former is not None:
            peer.kept, peer.epoch = former.kept, former.epoch
        self.peers[peer.id] = peer

    def start(self, peer: SimulatedPeer, weights_version: int = 0) -> None:
        """Bring a peer up: it starts, publishes, and looks at the records from now on."""
        if weights_version not in peer.kept:
            peer.kept.append(weights_version)
        self.feed(peer, ev.Started(weights_version, epoch=peer.epoch, kept=tuple(peer.kept)))
        self._republish(peer)
        self._show(peer)

    def kill(self, peer_id: PeerId) -> None:
        """The process is gone; its connections break at once."""
        peer = self.peers[peer_id]
        peer.alive = False
        cut_off_s = self.kernel.now - peer.busy_since if peer.busy_since is not None else 0.0
        self.on_fault(peer_id, peer.machine.accounts.uncommitted_s + cut_off_s, self.kernel.now)
        peer.device_s += cut_off_s
        peer.busy_since = None
        self.pushes.peer_gone(peer_id)
        for other in self.peers.values():
            if peer_id in other.watching:
                other.watching.discard(peer_id)
                self.later(other.id, peer_id, ev.WatchBroken(peer_id, "connection reset"))
        self._rounds.peer_gone(peer_id)
        self._downloads.stop(peer_id)
        self._downloads.donor_gone(peer_id)

    def freeze(self, peer_id: PeerId) -> None:
        """The process is stopped: it says nothing and computes nothing, and its connections stay open."""
        self.peers[peer_id].frozen = True
        self.on_fault(peer_id, 0.0, self.kernel.now)
        self.kernel.after(REQUEST_TIMEOUT_S, lambda: self._silent(peer_id))

    def _silent(self, donor: PeerId) -> None:
        """Those who download from a frozen peer turn to another."""
        if self.peers[donor].frozen:
            self._downloads.donor_gone(donor)

    def drain(self, peer_id: PeerId) -> None:
        """Its user wants to stop."""
        self.feed(self.peers[peer_id], ev.DrainRequested())

    def thaw(self, peer_id: PeerId) -> None:
        peer = self.peers[peer_id]
        peer.frozen = False
        waiting, peer.waiting = peer.waiting, []
        for event in waiting:
            self.feed(peer, event)
        self._show(peer)

    # ---- events in

    def feed(self, peer: SimulatedPeer, event: ev.Event) -> None:
        """See `Population.feed`."""
        self._population.feed(peer, event)

    def later(self, to: PeerId, about: PeerId, event: ev.Event, hops: int = 1) -> None:
        """See `Population.later`."""
        self._population.later(to, about, event, hops)

    def _before_event(self, peer: PeerId, event: ev.Event) -> None:
        if self.on_event is not None:
            self.on_event(peer, event, self.kernel.now)

    def _show(self, peer: SimulatedPeer) -> None:
        """Let a peer see the records that are visible now."""
        view = self.directory.view(self.kernel.now)
        if view is not peer.machine.ctx.view and peer.alive and not peer.frozen:
            self.feed(peer, ev.ViewChanged(view))

    def _show_all(self) -> None:
        for peer in list(self.peers.values()):
            self._show(peer)

    def _republish(self, peer: SimulatedPeer) -> None:
        if not peer.alive:
            return
        if not peer.frozen:
            self._publish(peer)
        self.kernel.after(self._record_period_s, lambda: self._republish(peer))

    def _publish(self, peer: SimulatedPeer) -> None:
        peer.sequence += 1
        around = OwnMeasurements(RunId("simulation"), links=peer.links, line_bytes_per_s=peer.line_bytes_per_s)
        self.directory.publish(stage_record(peer.machine, around, peer.sequence), self.kernel.now)
        visible_at = self.directory.visible_at(self.kernel.now)
        if visible_at > self._shown_at:
            self._shown_at = visible_at
            self.kernel.at(visible_at, self._show_all)

    # ---- effects out

    def carry_out(self, peer: SimulatedPeer, effect: ef.Effect) -> None:
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
                self._send(peer, to, message)
            case ef.Ask():
                self._ask(peer, effect)
            case ef.Compute():
                self._compute(peer, effect)
            case ef.StartTimer(name, delay_s):
                self._start_timer(peer, name, delay_s)
            case ef.CancelTimer(name):
                peer.timers.pop(name, None)
            case ef.Watch(other):
                self._watch(peer, other)
            case ef.Unwatch(other):
                peer.watching.discard(other)
            case ef.Average(prepare):
                self._average(peer, prepare)
            case ef.CancelAverage(iteration, attempt):
                self._rounds.withdraw(peer.id, iteration, attempt)
            case ef.Step(iteration, _):
                self._keep(peer, [*peer.kept, iteration + 1])
                self.kernel.after(0.0, lambda: self.feed(peer, ev.Stepped(iteration)))
            case ef.Download():
                self._download(peer, effect)
            case ef.Plan(request):
                self.feed(peer, ev.Planned(self.make_plan(request)))
            case ef.MoveTo(stage):
                self.on_move(peer.id, stage)
            case ef.Publish():
                self._publish(peer)
            case ef.Report():
                self._on_report(peer.id, effect, self.kernel.now)
            case ef.Answer() | ef.AnswerCheck() | ef.Discard() | ef.DropActivations():
                pass  # answers are read by whoever fed the event; there are no tensors to free

    def _compute(self, peer: SimulatedPeer, compute: ef.Compute) -> None:
        work, microbatch = compute.work, compute.microbatch
        again_s = peer.speed.seconds[ev.Work.FORWARD] if work is ev.Work.BACKWARD and not compute.keeps else 0.0
        seconds = peer.speed.seconds[work] + again_s
        peer.busy_since = began = self.kernel.now

        def finish() -> None:
            if not peer.alive:
                return
            peer.device_s += seconds
            peer.busy_since = None
            if self.on_span is not None:
                self.on_span(Span(peer.id, work.value, str(microbatch), began, self.kernel.now))
            self.feed(peer, ev.Computed(work, microbatch, seconds, 0.0 if work is ev.Work.LOSS else None, again_s))

        self.kernel.after(seconds, finish)

    def _start_timer(self, peer: SimulatedPeer, name: ev.TimerName, delay_s: float) -> None:
        self._timers += 1
        version = peer.timers[name] = self._timers  # a number that no cancelled timer of this name has

        def fire() -> None:
            if peer.timers.get(name) == version:
                del peer.timers[name]
                self.feed(peer, ev.TimerFired(name))

        self.kernel.after(delay_s, fire)

    def _watch(self, peer: SimulatedPeer, other: PeerId) -> None:
        if not self.peers[other].alive:
            self.later(peer.id, other, ev.WatchBroken(other, "connection refused"), hops=2)
        else:
            peer.watching.add(other)

    # ---- small messages

    def _send(self, peer: SimulatedPeer, to: PeerId, message: ControlMessage) -> None:
        self.messages += 1
        delay = self.links.latency_s(peer.id, to)

        def arrive() -> None:
            target = self.peers[to]
            if not target.alive:
                self.later(peer.id, to, ev.SendFailed(to, message, "connection refused"))
            elif target.frozen:
                target.waiting.append(ev.Received(peer.id, message))
                failed = ev.SendFailed(to, message, "no answer")
                self.kernel.after(REQUEST_TIMEOUT_S, lambda: self.feed(peer, failed))
            else:
                self.feed(target, ev.Received(peer.id, message))

        self.kernel.after(delay, arrive)

    def _ask(self, peer: SimulatedPeer, ask: ef.Ask) -> None:
        self.messages += 1
        asked_at = self.kernel.now
        latency = self.links.latency_s(peer.id, ask.peer)

        def arrive() -> None:
            target = self.peers[ask.peer]
            if not target.alive:
                self.later(peer.id, ask.peer, ev.CheckFailed(ask.peer, "connection refused", silent=False))
            elif target.frozen or 2 * latency > ask.deadline_s:
                left = max(0.0, asked_at + ask.deadline_s - self.kernel.now)
                failed = ev.CheckFailed(ask.peer, f"no answer in {ask.deadline_s:.2f} s", silent=True)
                self.kernel.after(left, lambda: self.feed(peer, failed))
            else:
                answers = target.machine.handle(ev.Received(peer.id, Check(ask.microbatches)), self.kernel.now)
                unknown = next(e.unknown for e in answers if isinstance(e, ef.AnswerCheck))
                self.later(peer.id, ask.peer, ev.CheckAnswered(ask.peer, unknown, 2 * latency))
                for effect in answers:
                    self.carry_out(target, effect)

        self.kernel.after(latency, arrive)

    # ---- averages and state

    def _average(self, peer: SimulatedPeer, prepare: Prepare) -> None:
        self._rounds.join(peer.id, prepare, [m for m in prepare.participants if not self.peers[m].alive])

    def _note_push(self, sender: PeerId, push: ef.Push, began: float) -> None:
        """A push has arrived: for whoever draws what took time."""
        if self.on_span is not None:
            what = type(push.message).__name__.lower()
            about, size = str(push.message.microbatch), self.sizes.microbatch_bytes
            self.on_span(Span(sender, what, about, began, self.kernel.now, push.to, size))

    def _averaged(self, participant: PeerId, prepare: Prepare, since: float) -> None:
        if self.on_span is not None:
            self.on_span(Span(participant, "average", f"iteration {prepare.iteration}", since, self.kernel.now))

    def _tell(self, to: PeerId, event: ev.Event, about: PeerId | None) -> None:
        if about is None:
            self.feed(self.peers[to], event)
        else:
            self.later(to, about, event)

    def _download(self, peer: SimulatedPeer, download: ef.Download) -> None:
        """From an own checkpoint if that is the right one, which takes no time; else from all donors at once."""
        version = download.version
        own = download.own and version in peer.kept

        def ended(whole: bool) -> None:
            if not whole:
                self.feed(peer, ev.DownloadFailed(f"nobody has version {version}"))
                return
            earlier = [v for v in peer.kept if v < version] if own or download.epoch == peer.epoch else []
            peer.epoch = download.epoch
            self._keep(peer, [*earlier, version])
            self.feed(peer, ev.Downloaded(version))

        donors = (peer.id,) if own else download.donors
        size = 0 if own else self.sizes.state_bytes
        self._downloads.start(Request(peer.id, size, donors, lambda d: self._can_give(d, version)), ended)

    def _keep(self, peer: SimulatedPeer, versions: list[int]) -> None:
        peer.kept = versions[-KEPT_VERSIONS:]
        self.kernel.after(0.0, lambda: self.feed(peer, ev.Kept(tuple(peer.kept))))

    def _can_give(self, donor: PeerId, version: int) -> bool:
        peer = self.peers[donor]
        return peer.alive and not peer.frozen and version in peer.kept
