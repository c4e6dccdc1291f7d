"""Small messages between simulated peers: they take a latency and no line, and an unanswered one fails after a while."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.certifying import signed
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.wire.messages import Check, ControlMessage
from gwtf_p2p.simulation.lines.links import REQUEST_TIMEOUT_S
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer
from gwtf_p2p.simulation.world.signatures import sign


class SmallMessages:
    """All of a world. `count` is how many were sent; `on_send` hears (sender, to, message). `signs`: as peers do."""

    def __init__(self, population: Population) -> None:
        self.count = 0
        self.signs = True
        self.on_send: Callable[[PeerId, PeerId, ControlMessage], None] = lambda sender, to, message: None
        self._population = population

    def send(self, peer: SimulatedPeer, to: PeerId, message: ControlMessage) -> None:
        """A dead peer refuses it; a frozen one hears it when it thaws, and its sender that there was no answer. One on the
        other side of a partition never hears it."""
        population = self._population
        self.count += 1
        message = signed(message, partial(sign, peer.id) if self.signs else None)
        self.on_send(peer.id, to, message)
        delay = population.links.latency_s(peer.id, to)

        def arrive() -> None:
            target = population.peers[to]
            is_apart = population.links.partition.separates(peer.id, to)
            if not target.alive and not is_apart:
                population.later(peer.id, to, ev.SendFailed(to, message, "connection refused"))
            elif target.frozen or is_apart:
                if not is_apart:
                    target.waiting.append(ev.Received(peer.id, message))
                failed = ev.SendFailed(to, message, "no answer")
                population.kernel.after(REQUEST_TIMEOUT_S, lambda: population.feed(peer, failed))
            else:
                population.feed(target, ev.Received(peer.id, message))

        population.kernel.after(delay, arrive)

    def ask(self, peer: SimulatedPeer, ask: ef.Ask) -> None:
        """Is the other peer there, and what does it know? It answers within the deadline, or counts as silent."""
        population = self._population
        self.count += 1
        asked_at = population.kernel.now
        latency = population.links.latency_s(peer.id, ask.peer)

        def arrive() -> None:
            target = population.peers[ask.peer]
            is_apart = population.links.partition.separates(peer.id, ask.peer)
            if not target.alive and not is_apart:
                population.later(peer.id, ask.peer, ev.CheckFailed(ask.peer, "connection refused", silent=False))
            elif is_apart or target.frozen or 2 * latency > ask.deadline_s:
                left = max(0.0, asked_at + ask.deadline_s - population.kernel.now)
                failed = ev.CheckFailed(ask.peer, f"no answer in {ask.deadline_s:.2f} s", silent=True)
                population.kernel.after(left, lambda: population.feed(peer, failed))
            else:
                answers = target.machine.handle(ev.Received(peer.id, Check(ask.microbatches)), population.kernel.now)
                unknown = next(e.unknown for e in answers if isinstance(e, ef.AnswerCheck))
                population.later(peer.id, ask.peer, ev.CheckAnswered(ask.peer, unknown, 2 * latency))
                for effect in answers:
                    population.carry_out(target, effect)

        population.kernel.after(latency, arrive)
