"""Faults as data: who, what, when. A script is injected before a run; afterwards every fault must have fired.

`kill`: the process is gone. `restart`: it is gone, and starts again `for_s` later, from its newest checkpoint or (`fresh`)
with nothing. `freeze`: it stops and says nothing. `blink`: it freezes and thaws `for_s` later. `drain`: its user wants to
stop. `slow`: from now on it computes `factor` times as long. `part`: it, and `others` with it, cannot reach the rest for
`for_s`; both sides live and compute. A moment is a time, or the n-th event or effect of the peer in an iteration: events hit
every state that a peer can be in, effects cut short what it does about an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.population import SimulatedPeer, Speed
from gwtf_p2p.simulation.world.world import World

KINDS = ("kill", "restart", "freeze", "blink", "drain", "slow", "part")


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_s` in virtual seconds; or `at_event` = (iteration, n): before the peer handles its n-th event of that iteration; or
    `at_effect`: before its n-th effect is carried out."""

    kind: str
    peer: PeerId
    at_s: float | None = None
    at_event: tuple[int, int] | None = None
    for_s: float = 0.0
    factor: float = 1.0
    fresh: bool = False
    at_effect: tuple[int, int] | None = None
    others: tuple[PeerId, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if [self.at_s, self.at_event, self.at_effect].count(None) != 2:
            raise ValueError("expected one of at_s, at_event and at_effect")


@dataclass
class Faults:
    """A script at work. `new_peer` makes a peer that was killed anew. `fired` tells what has happened, with its time;
    `parted_until` when the last partition of the script ends."""

    world: World
    new_peer: Callable[[PeerId], SimulatedPeer]
    fired: list[tuple[float, Fault]] = field(default_factory=list)
    parted_until: float = 0.0
    _waiting: dict[PeerId, list[Fault]] = field(default_factory=dict)
    _events: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    _effects: dict[PeerId, tuple[int, int]] = field(default_factory=dict)

    def inject(self, script: Sequence[Fault]) -> None:
        parts = (fault.at_s + fault.for_s for fault in script if fault.kind == "part" and fault.at_s is not None)
        self.parted_until = max([self.parted_until, *parts])
        for fault in script:
            if fault.at_s is not None:
                self.world.kernel.at(fault.at_s, lambda f=fault: self.fire(f))  # type: ignore[misc]
            else:
                self._waiting.setdefault(fault.peer, []).append(fault)

    def before_event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        """To be called by `World.on_event`."""
        if self._waiting.get(peer):
            moment = self._count(self._events, peer)
            self._fire_those(peer, lambda fault: fault.at_event == moment)

    def before_effect(self, peer: PeerId) -> None:
        """To be called by `World.on_effect`."""
        if self._waiting.get(peer):
            moment = self._count(self._effects, peer)
            self._fire_those(peer, lambda fault: fault.at_effect == moment)

    def _count(self, seen: dict[PeerId, tuple[int, int]], peer: PeerId) -> tuple[int, int]:
        """(iteration, n) of this moment."""
        iteration = self.world.peers[peer].machine.participant.version
        before, count = seen.get(peer, (iteration, 0))
        seen[peer] = moment = (iteration, count + 1 if before == iteration else 1)
        return moment

    def _fire_those(self, peer: PeerId, due: Callable[[Fault], bool]) -> None:
        waiting = self._waiting[peer]
        for fault in [f for f in waiting if due(f)]:
            waiting.remove(fault)
            self.fire(fault)

    def fire(self, fault: Fault) -> None:
        """Do it now. A peer that is dead already can only be restarted."""
        world, peer = self.world, self.world.peers[fault.peer]
        if not peer.alive or (peer.frozen and fault.kind != "kill"):
            return
        self.fired.append((world.kernel.now, fault))
        match fault.kind:
            case "kill":
                world.kill(fault.peer)
            case "restart":
                world.kill(fault.peer)
                world.kernel.after(fault.for_s, lambda: self.restart(fault.peer, fault.fresh))
            case "freeze":
                world.freeze(fault.peer)
            case "blink":
                world.freeze(fault.peer)
                world.kernel.after(fault.for_s, lambda: self._thaw(peer))
            case "part":
                if not world.links.partition.side:  # one at a time
                    world.partition(frozenset({fault.peer, *fault.others}))
                    world.kernel.after(fault.for_s, world.reunite)
            case "drain":
                world.drain(fault.peer)
            case "slow":
                seconds = {work: s * fault.factor for work, s in peer.speed.seconds.items()}
                peer.speed = Speed(seconds)

    def restart(self, peer_id: PeerId, fresh: bool) -> None:
        """Start a killed peer again, with its newest checkpoint or the run's first weights."""
        former = self.world.peers[peer_id]
        if former.alive:
            return
        if fresh:
            former.kept = []
        peer = self.new_peer(peer_id)
        peer.sequence = former.sequence
        self.world.add(peer)
        self.world.start(peer, peer.kept[-1] if peer.kept else 0)

    def _thaw(self, peer: SimulatedPeer) -> None:
        if peer.alive and peer.frozen and self.world.peers[peer.id] is peer:
            self.world.thaw(peer.id)
