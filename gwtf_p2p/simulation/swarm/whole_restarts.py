"""SWARM as the GWTF paper reads it: when a stage peer crashes that has handed a microbatch on, and its gradient is not back
yet, the whole microbatch begins again at its data peer, instead of one stage being computed once more.

SWARM's own code does not behave so; this is for a comparison with that paper's baseline, in the simulator alone. It favours
that arm where it simplifies: everybody forgets the microbatch at the moment of the crash, and taking what was counted out of a
sum costs nothing. A stage whose gradient had gone back before the crash is redone as usual.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.core.lifecycle import Phase, Sending
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.simulation.world.population import SimulatedPeer
from gwtf_p2p.simulation.world.world import World

BACK = frozenset({Phase.QUEUED_FINISH, Phase.FINISH, Phase.DONE})
"""At the data peer: the gradient is here."""


@dataclass
class WholeRestarts:
    """Of a world. `count`: microbatches that have begun again."""

    world: World
    count: int = 0

    def killed(self, peer: PeerId) -> None:
        """This stage peer has just crashed."""
        for held in self.world.peers[peer].machine.ctx.in_order():
            if held.sending in (Sending.AWAITING, Sending.RETURNED) and held.phase is not Phase.DONE:
                self._begin_again(held.id)

    def _begin_again(self, microbatch: MicrobatchId) -> None:
        owner = self.world.peers[microbatch.data_peer]
        machine, own = owner.machine, owner.machine.ctx.held.get(microbatch)
        if not isinstance(machine, DataPeer) or own is None or own.phase in BACK:
            return
        for peer in self.world.peers.values():
            if peer.alive and peer is not owner:
                self._forget(peer, microbatch)
        self.count += 1
        self._forget(owner, microbatch)
        machine.injecting.pending.append(microbatch.index)
        machine.ctx.start_timer(Timer.INJECT, "", 0.0)
        self._carry_out(owner)

    def _forget(self, peer: SimulatedPeer, microbatch: MicrobatchId) -> None:
        """As if it had never been here."""
        machine = peer.machine
        ctx, held = machine.ctx, machine.ctx.held.get(microbatch)
        ctx.now, ctx.out = self.world.kernel.now, []
        if held is not None:
            machine.participant.share.counted.discard(microbatch)
            machine.send_activation.unrouted.routed(held)
            ctx.router.observe_end(microbatch, ctx.now)
            ctx.discard(held)
            self._carry_out(peer)

    def _carry_out(self, peer: SimulatedPeer) -> None:
        effects, peer.machine.ctx.out = peer.machine.ctx.out, []
        for effect in effects:
            self.world.population.carry_out(peer, effect)
