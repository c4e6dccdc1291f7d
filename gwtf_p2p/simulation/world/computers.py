"""The computers that simulated peers run on: one computation at a time each, and their timers."""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer
from gwtf_p2p.simulation.world.spans import Spans


class Computers:
    """All of a world. What takes time on them is told as an event when it is over. `spoils`: whose result is not finite."""

    def __init__(self, population: Population, spans: Spans) -> None:
        self.spoils: Callable[[PeerId, ev.Work, MicrobatchId], bool] = lambda peer, work, microbatch: False
        self._population, self._spans = population, spans
        self._timers = 0
        self.differs: Callable[[PeerId, MicrobatchId], tuple[float, float]] = lambda peer, microbatch: (0.0, 0.0)

    def compute(self, peer: SimulatedPeer, compute: ef.Compute) -> None:
        """Begin a computation. A backward whose forward kept nothing computes the forward again first."""
        kernel = self._population.kernel
        work, microbatch = compute.work, compute.microbatch
        again_s = peer.speed.seconds[ev.Work.FORWARD] if work is ev.Work.BACKWARD and not compute.keeps else 0.0
        seconds = _seconds(peer, work) + again_s
        peer.busy_since = began = kernel.now

        def finish() -> None:
            if not peer.alive:
                return
            peer.device_s += seconds
            peer.busy_since = None
            self._spans.computed(peer.id, work, microbatch, began)
            finite = not self.spoils(peer.id, work, microbatch)
            loss = 0.0 if work is ev.Work.LOSS and finite else None
            differs = self.differs(peer.id, microbatch) if work is ev.Work.AUDIT else None
            self._population.feed(peer, ev.Computed(work, microbatch, seconds, loss, again_s, finite, differs))

        kernel.after(seconds, finish)

    def cut_off(self, peer: SimulatedPeer) -> float:
        """The peer is dead: end what it computes, and return the seconds that were spent on it."""
        cut_off_s = self._population.kernel.now - peer.busy_since if peer.busy_since is not None else 0.0
        peer.device_s += cut_off_s
        peer.busy_since = None
        return cut_off_s

    def start_timer(self, peer: SimulatedPeer, name: ev.TimerName, delay_s: float) -> None:
        """Replaces the peer's timer of the same name."""
        self._timers += 1
        version = peer.timers[name] = self._timers  # a number that no cancelled timer of this name has

        def fire() -> None:
            if peer.timers.get(name) == version:
                del peer.timers[name]
                self._population.feed(peer, ev.TimerFired(name))

        self._population.kernel.after(delay_s, fire)


def _seconds(peer: SimulatedPeer, work: ev.Work) -> float:
    """Doing another's work again takes a forward and a backward."""
    seconds = peer.speed.seconds
    return seconds[ev.Work.FORWARD] + seconds[ev.Work.BACKWARD] if work is ev.Work.AUDIT else seconds[work]
