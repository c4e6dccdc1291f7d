"""The messages of an outsider, floods of them and records of nobody, in a simulated swarm: what they do to its pace.

Time is virtual, so a figure is a figure of the protocol and not of the machine at hand. What the messages cost a peer is the
processor time of its state machine, which other programs do not change much.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import get_args

from experiments.support.outsider import Said, Script
from experiments.support.strange_messages import OUTSIDERS
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Check, Inquire, TensorMessage, from_header, to_header
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, StuckError, small_swarm

ITERATIONS, ATTACK_FROM_S, BETWEEN_S, GHOSTS = 12, 2.0, 0.05, 30
MOST_STEPS = 300_000
FLOOD = 40
"""Messages to each peer at each of the moments that are `BETWEEN_S` apart: 800 a second."""


def flood(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """Questions that anybody may ask."""
    return [Said(to_header(message)) for message in (Inquire(to.weights_version, 1), Check(())) for _ in range(FLOOD // 2)]


@dataclass
class Attacked:
    """A swarm and what an outsider does to it; `seconds` is the processor time of hearing it, `said` how often."""

    swarm: SmallSwarm
    script: Script | None
    ghosts: int = 0
    said: int = 0
    seconds: float = 0.0
    records: Mapping[PeerId, StageRecord] = field(default_factory=dict)

    def begin(self) -> None:
        """From `ATTACK_FROM_S` on."""
        self.swarm.world.kernel.at(ATTACK_FROM_S, self._strike)

    def _strike(self) -> None:
        world = self.swarm.world
        view = next(peer.machine.ctx.view for peer in world.peers.values() if peer.alive)
        if view is not None:
            self.records = {p: r for p, r in view.records.items() if p in world.peers and world.peers[p].alive}
        if self.ghosts:
            self._publish_ghosts()
        for peer, record in self.records.items() if self.script is not None else ():
            for said in self.script(OUTSIDERS[0], record, tuple(self.records.values())):
                self._say(peer, said)
        world.kernel.after(BETWEEN_S if self.script is not None else 10.0, self._strike)

    def _say(self, to: PeerId, said: Said) -> None:
        world, self.said = self.swarm.world, self.said + 1
        target = world.peers[to]
        try:
            message = from_header(said.header)
            is_tensor = isinstance(message, get_args(TensorMessage))
            event: ev.Event = ev.Offered(OUTSIDERS[0], message) if is_tensor else ev.Received(OUTSIDERS[0], message)  # type: ignore[arg-type]
        except RemoteProtocolError as error:
            event = ev.Misbehaved(OUTSIDERS[0], str(error))
        if world.population.hears(target, event):
            began = time.process_time()
            world.population.handle(target, event)
            self.seconds += time.process_time() - began

    def _publish_ghosts(self) -> None:
        example, kernel = next(iter(self.records.values())), self.swarm.world.kernel
        stages = self.swarm.config.stages
        for number in range(self.ghosts):
            stage = Stage(1 + number % stages)
            ghost = PeerId(f"relay_{stage}_{1000 + number}")
            if ghost not in self.swarm.world.peers:
                dead = self.swarm.new_peer(ghost)
                dead.alive = False
                self.swarm.world.add(dead)
            record = replace(
                example,
                peer=ghost,
                stage=stage,
                state=PeerState.ONLINE,
                capacity=64,
                links=(),
                sequence_number=int(kernel.now * 10),
            )
            self.swarm.world.directory.publish(record, kernel.now)
            self.said += 1


def simulated(attack: str, script: Script | None, seed: int) -> dict[str, object]:
    """One line: iterations in a virtual minute with the attack and without, and what the ledger says at the end."""
    in_peace = _in_peace(seed)
    with_it = _run(script, seed, GHOSTS if attack == "ghosts" else 0)
    return {"attack": attack, "seed": seed, "simulated": True, "per_minute_in_peace": in_peace, **with_it}


@cache
def _in_peace(seed: int) -> object:
    return _run(None, seed, 0)["per_minute"]


def _run(script: Script | None, seed: int, ghosts: int) -> dict[str, object]:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=2, microbatches=4, seed=seed))
    outsider = swarm.new_peer(OUTSIDERS[0])
    outsider.alive = False
    swarm.world.add(outsider)
    attacked, reason, lost, twice = Attacked(swarm, script, ghosts), "", 0, 0
    if script is not None or ghosts:
        attacked.begin()
    try:
        tally = swarm.run(ITERATIONS, most_steps=MOST_STEPS)
        lost, twice = tally.lost, tally.double
    except StuckError as error:
        reason = str(error).splitlines()[0]
    iterations = min(p.machine.participant.version for p in swarm.world.peers.values() if p.alive)
    return {
        "per_minute": round(60 * iterations / swarm.world.kernel.now, 1),
        "ended": bool(reason),
        "lost": lost,
        "double_counted": twice,
        "sender_barred": bool(swarm.reported("peer_barred")),
        "messages": attacked.said,
        "us_a_message": round(1e6 * attacked.seconds / max(1, attacked.said), 1),
        "reason": reason,
    }
