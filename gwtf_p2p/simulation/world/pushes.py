"""Pushes: how a tensor gets from one simulated peer to another, and what both hear of it.

The header arrives after one latency and is answered at once; the bytes follow it without waiting for the answer, and stop when
it is not ACCEPTED. In a star, what goes from stage peer to stage peer passes the microbatch's data peer, which stores and
forwards it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import Verdict
from gwtf_p2p.simulation.lines.links import Transfer

if TYPE_CHECKING:
    from gwtf_p2p.simulation.world.world import SimulatedPeer, World

Key = tuple[PeerId, int]
"""Sender and token."""


class Pushes:
    """All pushes under way in a world. `bytes_resent`: of tensors that the same peer had sent before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._transfers: dict[Key, Transfer] = {}
        self._accepted: dict[Key, ef.Push] = {}
        self._sent: set[tuple[PeerId, str, MicrobatchId]] = set()
        self.bytes_resent = 0

    def push(self, sender: PeerId, push: ef.Push) -> None:
        """Begin one."""
        world = self._world
        hub = push.message.microbatch.data_peer
        via = hub if world.star and hub not in (sender, push.to) else None
        latency = world.links.latency_s(sender, push.to, via)
        last = world.links.latency_s(via or sender, push.to)
        key = (sender, push.token)
        began = world.kernel.now

        def sent() -> None:
            world.kernel.after(last, lambda: self._arrived(key, push, began))

        self._transfers[key] = world.links.start(sender, push.to, world.sizes.microbatch_bytes, sent, via)
        world.kernel.after(latency, lambda: self._offer(key, push))

    def cancel(self, key: Key) -> None:
        """The sender does not want it any more."""
        transfer = self._transfers.pop(key, None)
        push = self._accepted.pop(key, None)
        if transfer is not None:
            self._world.links.stop(transfer)
        if push is not None:
            self._world.later(push.to, key[0], ev.DeliveryBroken(key[0], push.message, "cancelled"))

    def peer_gone(self, peer: PeerId) -> None:
        """Its connections break: the other ends hear of it."""
        world = self._world
        for (sender, token), transfer in list(self._transfers.items()):
            if peer not in (sender, transfer.receiver):
                continue
            world.links.stop(transfer)
            del self._transfers[sender, token]
            push = self._accepted.pop((sender, token), None)
            if transfer.receiver == peer:
                world.later(sender, peer, ev.PushFailed(token, "connection reset"))
            elif push is not None:
                world.later(push.to, peer, ev.DeliveryBroken(peer, push.message, "connection reset"))

    def _offer(self, key: Key, push: ef.Push) -> None:
        world, sender = self._world, key[0]
        target = world.peers[push.to]
        if key not in self._transfers:
            return
        event = ev.Offered(sender, push.message)
        if world.hears(target, event):
            self._answer(key, push, target, event)
        elif key not in self._transfers:
            pass  # it died just now, and its connections with it
        elif not target.alive:
            self._drop(key)
            world.later(sender, push.to, ev.PushFailed(push.token, "connection refused"))
        else:
            target.waiting.append(ev.DeliveryBroken(sender, push.message, "frozen"))
            self._drop(key, keep=True)

    def _answer(self, key: Key, push: ef.Push, target: SimulatedPeer, event: ev.Offered) -> None:
        world = self._world
        effects = target.machine.handle(event, world.kernel.now)
        answer = next(e for e in effects if isinstance(e, ef.Answer))
        if answer.verdict is not Verdict.ACCEPTED:
            self._drop(key)
        else:
            self._accepted[key] = push
        world.later(key[0], push.to, ev.PushAnswered(push.token, answer.verdict, answer.detail))
        for effect in effects:
            world.carry_out(target, effect)

    def _arrived(self, key: Key, push: ef.Push, began: float) -> None:
        world = self._world
        transfer = self._transfers.pop(key, None)
        accepted = self._accepted.pop(key, None)
        target, sender = world.peers[push.to], world.peers[key[0]]
        if transfer is None or accepted is None or not target.alive or not sender.alive:
            return
        self._count(key[0], push)
        world.note_push(key[0], push, began)
        world.feed(target, ev.Delivered(key[0], push.message))
        if not target.frozen:
            world.later(key[0], push.to, ev.PushDelivered(push.token, world.kernel.now - began))

    def _count(self, sender: PeerId, push: ef.Push) -> None:
        """A tensor that its sender has sent before, whole, to whomever."""
        sent = (sender, type(push.message).__name__, push.message.microbatch)
        if sent in self._sent:
            self.bytes_resent += self._world.sizes.microbatch_bytes
        self._sent.add(sent)

    def _drop(self, key: Key, keep: bool = False) -> None:
        """Stop a transfer; `keep` when the sender does not learn of it (a frozen receiver)."""
        transfer = self._transfers.get(key)
        if transfer is not None:
            self._world.links.stop(transfer)
            if not keep:
                del self._transfers[key]
