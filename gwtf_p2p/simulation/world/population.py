"""The peers of a world, and how events reach them: at once, or after the latency of a path, or never.

A frozen peer hears everything when it thaws; a dead one hears nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.wire.messages import Evaluations
from gwtf_p2p.protocol.wire.records import LinkMeasurement
from gwtf_p2p.simulation.lines.kernel import Kernel
from gwtf_p2p.simulation.lines.links import Links


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one microbatch on this peer's device, per kind of work."""

    seconds: Mapping[ev.Work, float]


@dataclass
class SimulatedPeer:
    """A state machine and the little that the world must know about the computer that it runs on.

    `device_s` is how long the device has computed, work cut off by a crash included. `kept` are the versions of its
    weights that it could give: the last is what it works with, the others are checkpoints. `contributions` are, at a data
    peer, the sums of those versions, and `evaluations` what its checkpoints tell of them. `copies` says of each version what
    its weights have come from: equal for equal weights (`world/copies`).
    """

    machine: StagePeer | DataPeer
    speed: Speed
    alive: bool = True
    frozen: bool = False
    sequence: int = 0
    timers: dict[ev.TimerName, int] = field(default_factory=dict)
    watching: set[PeerId] = field(default_factory=set)
    waiting: list[ev.Event] = field(default_factory=list)
    links: tuple[LinkMeasurement, ...] = ()
    line_bytes_per_s: float = 0.0
    busy_since: float | None = None
    device_s: float = 0.0
    kept: list[int] = field(default_factory=list)
    contributions: dict[int, Contributions] = field(default_factory=dict)
    evaluations: dict[int, Evaluations | None] = field(default_factory=dict)
    copies: dict[int, str] = field(default_factory=dict)
    epoch: int = 0

    @property
    def id(self) -> PeerId:
        return self.machine.ctx.me


class Population:
    """All peers of a world. `before_event` is told of every event that a peer is about to hear, `carry_out` of its effects."""

    def __init__(
        self,
        kernel: Kernel,
        links: Links,
        before_event: Callable[[PeerId, ev.Event], None],
        carry_out: Callable[[SimulatedPeer, ef.Effect], None],
    ) -> None:
        self.kernel, self.links = kernel, links
        self.peers: dict[PeerId, SimulatedPeer] = {}
        self.carry_out = carry_out
        self._before_event = before_event

    def feed(self, peer: SimulatedPeer, event: ev.Event) -> None:
        """Let a peer handle an event now, or when it thaws, and carry out what follows."""
        if not self.hears(peer, event):
            if peer.alive:
                peer.waiting.append(event)
            return
        self.handle(peer, event)

    def handle(self, peer: SimulatedPeer, event: ev.Event) -> list[ef.Effect]:
        """Let a peer that is up handle an event now and carry out what follows; returns that, for answers."""
        effects = peer.machine.handle(event, self.kernel.now)
        for effect in effects:
            self.carry_out(peer, effect)
        return effects

    def hears(self, peer: SimulatedPeer, event: ev.Event) -> bool:
        """False when the peer is dead or frozen; whoever listens may do that to it just before the event."""
        if peer.alive and not peer.frozen:
            self._before_event(peer.id, event)
        return peer.alive and not peer.frozen

    def later(self, to: PeerId, about: PeerId, event: ev.Event, hops: int = 1) -> None:
        """Feed an event to `to` after one latency (or more) of its path to `about`."""
        delay, peer = hops * self.links.latency_s(about, to), self.peers[to]
        self.kernel.after(delay, lambda: self.feed(peer, event))

    def tell(self, to: PeerId, event: ev.Event, about: PeerId | None) -> None:
        """Feed an event one latency of the path to `about` from now, or now when that is None."""
        if about is None:
            self.feed(self.peers[to], event)
        else:
            self.later(to, about, event)
