"""Any well-formed message from anybody to anybody, at any moment of a simulated run.

Fields are drawn by their types and bounds: peers, microbatches, stages and numbers that mean something in the swarm at hand as
often as those at the ends of their ranges. What `wire/codec` would not read is not sent, as it never gets to a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import ControlMessage, Message, TensorMessage, Verdict, from_header, to_header
from gwtf_p2p.simulation.world.population import SimulatedPeer
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, small_swarm

OUTSIDERS = tuple(PeerId(f"relay_1_{n}") for n in range(90, 98))
"""Identities without a record; what is sent to them is refused, as by peers that are not there."""

ANYBODY_S = 5.0
"""Virtual seconds that a run with messages of anybody lasts."""

KINDS: tuple[Any, ...] = (*get_args(TensorMessage), *get_args(ControlMessage))
_FAR = (0, 1, 2, 3, 7, 1 << 20, 1 << 40, (1 << 63) - 1, -1)


@dataclass
class Pools:
    """What messages may name: of the swarm as it is now."""

    peers: list[PeerId]
    microbatches: list[MicrobatchId]
    iteration: int
    stages: int


def pools_of(swarm: SmallSwarm) -> Pools:
    """From what all machines hold and where they stand."""
    machines = [peer.machine for peer in swarm.world.peers.values() if peer.alive]
    held = sorted({m for machine in machines for m in machine.ctx.held})
    iteration = max((machine.participant.version for machine in machines), default=0)
    owner = PeerId("data_0")
    made = [MicrobatchId(owner, iteration, 0), MicrobatchId(OUTSIDERS[0], iteration, 1), MicrobatchId(owner, iteration + 1, 0)]
    return Pools(sorted(swarm.world.peers), [*held, *made], iteration, swarm.config.stages)


def draw(random: Random, pools: Pools, kind: Any = None) -> Message:
    """One message that a peer could read, of this kind or of any."""
    while True:
        chosen = kind or random.choice(KINDS)
        try:
            return from_header(to_header(_made(random, pools, chosen)))
        except RemoteProtocolError:
            continue


def _made(random: Random, pools: Pools, kind: Any) -> Any:
    return kind(**{name: _value(random, pools, hint, name) for name, hint in _hints(kind)})


@cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((f.name, hints[f.name]) for f in fields(kind))


def _value(random: Random, pools: Pools, hint: Any, name: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(random, pools, args[0], name)
    if origin in (Union, UnionType):
        chosen = random.choice(args)
        return None if chosen is NoneType else _value(random, pools, chosen, name)
    if origin is Literal:
        return random.choice(args)
    if hint is MicrobatchId:
        return random.choice(pools.microbatches)
    if hasattr(hint, "__dataclass_fields__"):
        return _made(random, pools, hint)
    if origin is tuple:
        count = random.choice((0, 1, 1, 2, pools.stages, 4))
        return tuple(_value(random, pools, args[0], name) for _ in range(count))
    if origin is not None and issubclass(origin, Mapping):
        return {str(random.choice(pools.peers)): _value(random, pools, args[1], name) for _ in range(random.randrange(3))}
    return _scalar(random, pools, hint, name)


def _scalar(random: Random, pools: Pools, hint: Any, name: str) -> Any:
    if hint is PeerId:
        return random.choice(pools.peers)
    if hint is Stage:
        return Stage(random.randrange(pools.stages + 3))
    if hint is bool:
        return random.random() < 0.5
    if hint is float:
        return random.choice((0.0, 1.0, -1.0, 1e-9, 1e9, 1e30))
    if hint is int:
        near = pools.iteration + random.choice((-1, 0, 0, 1, 1, 2))
        return max(0, near) if random.random() < 0.7 else random.choice(_FAR)
    return random.choice(("", "a", str(random.choice(pools.peers))))


@dataclass
class Attack:
    """`sent` messages of strange senders, and what became of them."""

    swarm: SmallSwarm
    random: Random
    senders: tuple[PeerId, ...]
    sent: int = 0
    log: list[tuple[float, PeerId, PeerId, Message]] = field(default_factory=list)

    def strike(self) -> None:
        """One message, from one of the senders to any peer that is up."""
        world, random = self.swarm.world, self.random
        up = sorted(peer for peer, each in world.peers.items() if each.alive and not each.frozen)
        sender, to = random.choice(self.senders), random.choice(up)
        if sender == to:
            return
        message = draw(random, pools_of(self.swarm))
        self.sent += 1
        self.log.append((world.kernel.now, sender, to, message))
        target = world.peers[to]
        if not isinstance(message, get_args(TensorMessage)):
            self._feed(target, ev.Received(sender, message))  # type: ignore[arg-type]
            return
        effects = self._feed(target, ev.Offered(sender, message))
        answers = [e for e in effects if isinstance(e, ef.Answer)]
        assert len(answers) == 1, f"{len(answers)} answers to {message}"
        if answers[0].verdict is Verdict.ACCEPTED:
            end = random.choice((ev.Delivered(sender, message), ev.DeliveryBroken(sender, message, "broken")))
            world.kernel.after(random.random(), lambda: self._end(target, end))

    def _end(self, target: SimulatedPeer, end: ev.Event) -> None:
        self._feed(target, end)

    def _feed(self, target: SimulatedPeer, event: ev.Event) -> list[ef.Effect]:
        population = self.swarm.world.population
        return population.handle(target, event) if population.hears(target, event) else []

    def story(self, last: int = 12) -> str:
        """The last that was sent."""
        return "\n".join(f"{at:.3f} {sender} -> {to}: {message!r:.300}" for at, sender, to, message in self.log[-last:])


SENDERS = ("outsiders", "stage peers", "anybody")


def strange_run(seed: int, senders: str, messages: int = 40, iterations: int = 3) -> Attack:
    """A small swarm with strange messages in its first seconds, run until it has done its iterations.

    `senders` is one of `SENDERS`. Raises StuckError when training does not go on, InvariantError when a promise is broken, and
    whatever leaves a handler. Where the messages are anybody's, those of whoever leads are among them, who can hold up the
    iteration and commit it twice: then only the last is raised.
    """
    random = Random(seed)
    config = SmallConfig(stages=2, stage_peers=2, data_peers=random.choice((1, 2)), microbatches=2, seed=seed)
    swarm = small_swarm(config)
    peers = {"outsiders": OUTSIDERS, "stage peers": tuple(swarm.stage_peers), "anybody": (*swarm.world.peers, *OUTSIDERS)}
    for outsider in OUTSIDERS:
        dead = swarm.new_peer(outsider)
        dead.alive = False
        swarm.world.add(dead)
    attack = Attack(swarm, random, peers[senders])
    for _ in range(messages):
        swarm.world.kernel.at(random.uniform(0.5, 3.5), attack.strike)
    if senders == "anybody":
        swarm.world.kernel.run(lambda: False, ANYBODY_S)
    else:
        swarm.run(iterations)
    return attack
