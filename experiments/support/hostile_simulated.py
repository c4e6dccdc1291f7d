"""The messages of an outsider, floods of them and records of nobody, in a simulated swarm: what they do to its pace.

Time is virtual, so a figure is a figure of the protocol and not of the machine at hand. What the messages cost a peer is the
processor time of its state machine, which other programs do not change much.

Data peers that break the rules of their role for a while (`member_line`), iterations a minute before, during and after:

- `equivocating_coordinator`: whoever leads tells every second peer another share, another norm, and nothing of some commits.
- `freezing_coordinator`: whoever leads stops for a while just when all have averaged, and goes on, again and again.
- `never_finishes`: a data peer answers everything and never says that its microbatches are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import get_args

from experiments.support.outsider import Said, Script
from experiments.support.strange_messages import OUTSIDERS
from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Check, Commit, Finished, Inquire, Prepare, TensorMessage, from_header, to_header
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord
from gwtf_p2p.simulation.world.population import SimulatedPeer
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, StuckError, small_swarm

ITERATIONS, ATTACK_FROM_S, BETWEEN_S, GHOSTS = 12, 2.0, 0.05, 1000
MOST_STEPS = 300_000
FLOOD = 40
"""Messages to each peer at each of the moments that are `BETWEEN_S` apart: 800 a second."""


def flood(me: PeerId, to: StageRecord, others: Sequence[StageRecord]) -> list[Said]:
    """Questions that anybody may ask."""
    return [Said(to_header(message)) for message in (Inquire(to.weights_version, 1), Check(())) for _ in range(FLOOD // 2)]


@dataclass
class Attacked:
    """A swarm and what an outsider does to it; `seconds` is the processor time of hearing it, `said` how often. `ghosts` are
    records of peers whose hosts refuse every connection, or, if they are `silent`, let it time out."""

    swarm: SmallSwarm
    script: Script | None
    ghosts: int = 0
    silent: bool = False
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
                dead.alive, dead.frozen = self.silent, self.silent
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


def simulated(attack: str, script: Script | None, seed: int, ghosts: int = GHOSTS) -> dict[str, object]:
    """One line: iterations in a virtual minute with the attack and without, and what the ledger says at the end."""
    in_peace = _in_peace(seed)
    with_it = _run(script, seed, ghosts if "ghosts" in attack else 0, silent="silent" in attack)
    return {"attack": attack, "seed": seed, "simulated": True, "per_minute_in_peace": in_peace, **with_it}


@cache
def _in_peace(seed: int) -> object:
    return _run(None, seed, 0)["per_minute"]


def _run(script: Script | None, seed: int, ghosts: int, silent: bool = False) -> dict[str, object]:
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=2, microbatches=4, seed=seed))
    outsider = swarm.new_peer(OUTSIDERS[0])
    outsider.alive = False
    swarm.world.add(outsider)
    attacked, reason, lost, twice = Attacked(swarm, script, ghosts, silent), "", 0, 0
    if script is not None or ghosts:
        attacked.begin()
    began = time.process_time()
    try:
        tally = swarm.run(ITERATIONS, most_steps=MOST_STEPS)
        lost, twice = tally.lost, tally.double
    except StuckError as error:
        reason = str(error).splitlines()[0]
    iterations = min(p.machine.participant.version for p in swarm.world.peers.values() if p.alive and not p.frozen)
    return {
        "per_minute": round(60 * iterations / swarm.world.kernel.now, 1),
        "ended": bool(reason),
        "lost": lost,
        "double_counted": twice,
        "sender_barred": bool(swarm.reported("peer_barred")),
        "messages": attacked.said,
        "us_a_message": round(1e6 * attacked.seconds / max(1, attacked.said), 1),
        "cpu_s": round(time.process_time() - began, 1),
        "reason": reason,
    }


FROM_S, UNTIL_S, END_S = 10.0, 30.0, 50.0
LONG_S = 200.0
"""How much longer `never_finishes` goes on: patience is a minute."""
FROZEN_S = 3.0
FIRST, SECOND = PeerId("data_0"), PeerId("data_1")
"""The first of the data peers leads."""

Changed = Callable[[SmallSwarm, SimulatedPeer, ef.Effect], ef.Effect | None]
"""What a peer does instead; None: nothing."""


def equivocates(swarm: SmallSwarm, peer: SimulatedPeer, effect: ef.Effect) -> ef.Effect | None:
    """In one iteration another `Prepare`, in the next another `Commit`, in the third none, to every second peer."""
    if peer.id != FIRST or not isinstance(effect, ef.Send) or effect.to == FIRST or int(effect.to[-1]) % 2 == 0:
        return effect
    message = effect.message
    match message:
        case Prepare() if message.iteration % 3 == 0:
            shares = tuple(replace(share, microbatches=share.microbatches[1:]) for share in message.shares)
            return replace(effect, message=replace(message, shares=shares, mean_loss=0.0))
        case Commit() if message.iteration % 3 == 1:
            return replace(effect, message=replace(message, gradient_norm=2 * message.gradient_norm + 1))
        case Commit() if message.iteration % 3 == 2:
            return None
    return effect


def freezes(swarm: SmallSwarm, peer: SimulatedPeer, effect: ef.Effect) -> ef.Effect | None:
    """Its commit goes to nobody, and it is silent for a while."""
    world = swarm.world
    if peer.id == FIRST and isinstance(effect, ef.Send) and isinstance(effect.message, Commit) and not peer.frozen:
        world.freeze(FIRST)
        world.kernel.after(FROZEN_S, lambda: world.thaw(FIRST))
    return None if peer.id == FIRST and peer.frozen else effect


def never_finishes(swarm: SmallSwarm, peer: SimulatedPeer, effect: ef.Effect) -> ef.Effect | None:
    """It says all but that."""
    is_report = isinstance(effect, ef.Send) and isinstance(effect.message, Finished)
    return None if peer.id == SECOND and is_report else effect


MEMBERS: Mapping[str, Changed] = {
    "equivocating_coordinator": equivocates,
    "freezing_coordinator": freezes,
    "never_finishes": never_finishes,
}


@dataclass
class Phases:
    """How many iterations the honest peers had committed at each moment."""

    swarm: SmallSwarm
    liar: PeerId

    def committed(self) -> int:
        peers = self.swarm.world.peers.values()
        return min(p.machine.participant.version for p in peers if p.alive and not p.frozen and p.id != self.liar)


def member_line(attack: str, seed: int) -> dict[str, object]:
    """One line: the attack goes on from `FROM_S` to `UNTIL_S` of virtual time, and the run until `END_S` at least."""
    swarm = small_swarm(SmallConfig(stages=2, stage_peers=2, data_peers=3, microbatches=4, seed=seed))
    world, changed = swarm.world, MEMBERS[attack]
    until_s = UNTIL_S + (LONG_S if attack == "never_finishes" else 0.0)
    end_s = until_s + END_S - UNTIL_S
    phases = Phases(swarm, SECOND if attack == "never_finishes" else FIRST)
    as_it_is = world.population.carry_out

    def carry_out(peer: SimulatedPeer, effect: ef.Effect) -> None:
        under_attack = FROM_S <= world.kernel.now < until_s
        instead = changed(swarm, peer, effect) if under_attack else effect
        if instead is not None:
            as_it_is(peer, instead)

    world.population.carry_out = carry_out
    marks: list[int] = []
    for at in (2.0, FROM_S, until_s, end_s):
        world.kernel.at(at, lambda: marks.append(phases.committed()))
    reason = ""
    tally = None
    with suppress(StuckError):  # the time is over: that is how it ends
        swarm.run(10_000, deadline_s=end_s + 0.01)
    before, during, after = (b - a for a, b in pairwise(marks))
    try:
        tally = swarm.invariants.check()
    except AssertionError as error:
        reason = str(error).splitlines()[0]
    return {
        "attack": attack,
        "seed": seed,
        "simulated": True,
        "per_minute_before": round(60 * before / (FROM_S - 2.0), 1),
        "per_minute_during": round(60 * during / (until_s - FROM_S), 1),
        "per_minute_after": round(60 * after / (end_s - until_s), 1),
        "ended": bool(reason) or after == 0,
        "lost": tally.lost if tally is not None else -1,
        "double_counted": tally.double if tally is not None else -1,
        "passed_over": len(swarm.reported("data_peer_passed_over")),
        "barred": sorted({str(report.fields["peer"]) for _, report, _ in swarm.reported("peer_barred")}),
        "reason": reason,
    }
