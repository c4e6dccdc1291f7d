"""Machines whose messages lie in a bag: whoever plays chooses what arrives next, what fails, and who thinks whom lost.

Transfers and computations happen at once, since only the commit is of interest here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire import messages as msg
from tests.protocol.peers import A2, D2, A, D, Driven, data_peer, record, stage_peer

Parcel = tuple[PeerId, PeerId, msg.ControlMessage]


class Soup:
    """Two data peers and one stage of two peers. `steps`: which average each peer applied, by (epoch, iteration)."""

    def __init__(self) -> None:
        peers = (D, D2, A, A2)
        made = {p: data_peer(p, 1, 1, 2, peers=peers) if p in (D, D2) else stage_peer(p, 1, peers=peers) for p in peers}
        self.peers: dict[PeerId, Driven] = made
        self.bag: list[Parcel] = []
        self.averages: list[tuple[PeerId, msg.Prepare]] = []
        self.dead: set[PeerId] = set()
        self.isolated: set[PeerId] = set()
        self.steps: dict[tuple[int, int], dict[PeerId, msg.Ballot]] = {}
        self._prepares: dict[tuple[PeerId, int, int], msg.Prepare] = {}
        self._due: deque[Callable[[], None]] = deque()
        for peer in peers:
            self.feed(peer, ev.Started(0, incarnation=7))
        for peer in peers:
            self.peers[peer].sees([record(p) for p in peers])
            self._carry_out(peer)
        self.calmly(lambda: any(isinstance(m, msg.Finished) for _, _, m in self.bag))

    # ---- what may happen next

    def calmly(self, until: Callable[[], bool], limit: int = 3000) -> None:
        """Everything arrives in order; time passes when nothing is under way."""
        for _ in range(limit):
            if until():
                return
            if self.averages:
                self.finish_average(0)
            elif self.bag:
                self.deliver(0)
            else:
                self.fire(0)
        raise AssertionError(f"it does not come to that: {self.bag}, {self.steps}")

    def deliver(self, index: int) -> None:
        if self.bag:
            sender, to, message = self.bag.pop(index % len(self.bag))
            self.feed(to, ev.Received(sender, message))

    def fail(self, index: int) -> None:
        """A message cannot be delivered, and its sender hears so."""
        if self.bag:
            sender, to, message = self.bag.pop(index % len(self.bag))
            self.feed(sender, ev.SendFailed(to, message, "reset"))

    def finish_average(self, index: int) -> None:
        if self.averages:
            peer, prepare = self.averages.pop(index % len(self.averages))
            self.feed(peer, ev.AverageDone(prepare.iteration, prepare.attempt, f"{prepare.key} {prepare.shares}", 0.1))

    def fire(self, index: int) -> None:
        """One of the timers of those that live, the next one first."""
        armed = sorted(
            (at, p, n[0].value, n) for p, d in self.peers.items() if p not in self.dead for n, at in d.timers.items()
        )
        if armed:
            at, peer, _, name = armed[index % min(len(armed), 4)]
            for driven in self.peers.values():
                driven.now = max(driven.now, at)
            self.peers[peer].fires(*name)
            self._carry_out(peer)

    def think_lost(self, peer: PeerId, other: PeerId) -> None:
        """`peer` gets no answer of `other`, which may well be alive."""
        if peer not in self.dead and peer != other:
            self.peers[peer].handle(ev.WatchBroken(other, "reset"))
            self.peers[peer].out = [e for e in self.peers[peer].out if not isinstance(e, ef.Ask)]
            self._carry_out(peer)
            self.feed(peer, ev.CheckFailed(other, "refused", silent=False))

    def isolate(self, peer: PeerId) -> None:
        """Nothing reaches a peer until `rejoin`, and all others think it lost."""
        self.isolated.add(peer)
        for other in self.peers:
            self.think_lost(other, peer)

    def rejoin(self) -> None:
        self.isolated.clear()

    def play(self, steps: int) -> None:
        """So many steps in order, but nothing to those who are isolated."""
        for _ in range(steps):
            within = [n for n, (_, to, _) in enumerate(self.bag) if to not in self.isolated]
            if self.averages:
                self.finish_average(0)
            elif within:
                self.deliver(within[0])
            else:
                self.fire(0)

    def crash(self, peer: PeerId) -> None:
        self.dead.add(peer)
        self.averages = [(p, prepare) for p, prepare in self.averages if p != peer]

    # ---- carrying out effects

    def feed(self, peer: PeerId, event: ev.Event) -> None:
        self._feed(peer, event)
        while self._due:
            self._due.popleft()()

    def _feed(self, peer: PeerId, event: ev.Event) -> None:
        if peer not in self.dead:
            self.peers[peer].handle(event)
            self._queue(peer)

    def _carry_out(self, peer: PeerId) -> None:
        self._queue(peer)
        while self._due:
            self._due.popleft()()

    def _queue(self, peer: PeerId) -> None:
        for effect in self.peers[peer].out:
            match effect:
                case ef.Send(to, message):
                    self.bag.append((peer, to, message))
                case ef.Push():
                    self._due.append(lambda push=effect: self._push(peer, push))  # type: ignore[misc]
                case ef.Compute(work, microbatch):
                    done = ev.Computed(work, microbatch, 0.1, 1.0)
                    self._due.append(lambda done=done: self._feed(peer, done))  # type: ignore[misc]
                case ef.Ask(other, microbatches, _):
                    self._due.append(lambda o=other, m=microbatches: self._ask(peer, o, m))  # type: ignore[misc]
                case ef.Average(prepare):
                    self.averages.append((peer, prepare))
                    self._prepares[peer, prepare.iteration, prepare.attempt] = prepare
                case ef.CancelAverage(iteration, attempt):
                    gone = (peer, iteration, attempt)
                    self.averages = [(p, a) for p, a in self.averages if (p, a.iteration, a.attempt) != gone]
                case ef.Step(iteration, attempt):
                    prepare = self._prepares[peer, iteration, attempt]
                    self.steps.setdefault((prepare.epoch, iteration), {})[peer] = prepare.ballot
                    self._due.append(lambda i=iteration: self._feed(peer, ev.Stepped(i)))  # type: ignore[misc]
                case ef.Download(version, donors, own):
                    there = own or any(
                        d not in self.dead and self.peers[d].machine.participant.weights == version for d in donors
                    )
                    told = ev.Downloaded(version) if there else ev.DownloadFailed("nobody has it")
                    self._due.append(lambda told=told: self._feed(peer, told))  # type: ignore[misc]
                case _:
                    pass

    def _push(self, sender: PeerId, push: ef.Push) -> None:
        if push.to in self.dead:
            self._feed(sender, ev.PushFailed(push.token, "refused"))
            return
        receiver = self.peers[push.to]
        receiver.handle(ev.Offered(sender, push.message))
        verdict, detail = receiver.verdict()
        self._queue(push.to)
        self._feed(sender, ev.PushAnswered(push.token, verdict, detail))
        if verdict is msg.Verdict.ACCEPTED:
            self._feed(push.to, ev.Delivered(sender, push.message))
            self._feed(sender, ev.PushDelivered(push.token, 0.1))

    def _ask(self, asker: PeerId, other: PeerId, microbatches: tuple[msg.MicrobatchId, ...]) -> None:
        if other in self.dead:
            self._feed(asker, ev.CheckFailed(other, "refused", silent=False))
            return
        self.peers[other].handle(ev.Received(asker, msg.Check(microbatches)))
        [answer] = self.peers[other].did(ef.AnswerCheck)
        self._queue(other)
        self._feed(asker, ev.CheckAnswered(other, answer.unknown, 0.01))
