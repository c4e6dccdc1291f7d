"""Pushes: how a tensor gets from one simulated peer to another, and what both hear of it.

The header arrives after one latency and is answered at once; the bytes follow it without waiting for the answer, and stop when
it is not ACCEPTED. In a star, what goes from stage peer to stage peer passes the microbatch's data peer, which stores and
forwards it.
"""

from __future__ import annotations

from collections.abc import Callable

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.messages import TensorMessage, Verdict
from gwtf_p2p.simulation.lines.links import Transfer
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer

Key = tuple[PeerId, int]
"""Sender and token."""

PARKED_S = 2.0
"""For so long a live peer keeps a half received payload, whose sender may take it up again, before it counts as broken off: the
next transfer of the same tensor is under way by then."""


class Pushes:
    """All pushes under way in a world. `bytes_resent`: of tensors that the same peer had sent before.

    `star`: tensors between stage peers pass the data peer. `on_arrival(sender, push, began)` hears of every tensor that has
    arrived. `refuses(sender, push)`: why its receiver does not take what has come; '' if it does.
    """

    def __init__(self, population: Population, sizes: Sizes, on_arrival: Callable[[PeerId, ef.Push, float], None]) -> None:
        self.star = False
        self._population, self._sizes, self._on_arrival = population, sizes, on_arrival
        self._transfers: dict[Key, Transfer] = {}
        self._accepted: dict[Key, ef.Push] = {}
        self._sent: set[tuple[PeerId, str, MicrobatchId]] = set()
        self.bytes_resent = 0
        self.refuses: Callable[[PeerId, ef.Push], str] = lambda sender, push: ""

    def push(self, sender: PeerId, push: ef.Push) -> None:
        """Begin one."""
        population = self._population
        hub = push.message.microbatch.data_peer
        via = hub if self.star and hub not in (sender, push.to) else None
        latency = population.links.latency_s(sender, push.to, via)
        last = population.links.latency_s(via or sender, push.to)
        key = (sender, push.token)
        began = population.kernel.now

        def sent() -> None:
            population.kernel.after(last, lambda: self._arrived(key, push, began))

        self._transfers[key] = population.links.start(sender, push.to, self._sizes.of_push(push.message), sent, via)
        population.kernel.after(latency, lambda: self._offer(key, push))

    def cancel(self, key: Key) -> None:
        """The sender does not want it any more."""
        transfer = self._transfers.pop(key, None)
        push = self._accepted.pop(key, None)
        if transfer is not None:
            self._population.links.stop(transfer)
        if push is not None:
            event, to = ev.DeliveryBroken(key[0], push.message, "cancelled"), self._population.peers[push.to]
            parked_s = PARKED_S + self._population.links.latency_s(key[0], push.to)
            self._population.kernel.after(parked_s, lambda: self._population.feed(to, event))

    def senders(self) -> set[PeerId]:
        """Who sends a tensor now."""
        return {sender for sender, _ in self._transfers}

    def size_of(self, message: TensorMessage) -> int:
        """Bytes of the tensor that it goes with."""
        return self._sizes.of_push(message)

    def peer_gone(self, peer: PeerId) -> None:
        """Its connections break: the other ends hear of it."""
        population = self._population
        for (sender, token), transfer in list(self._transfers.items()):
            if peer not in (sender, transfer.receiver):
                continue
            population.links.stop(transfer)
            del self._transfers[sender, token]
            push = self._accepted.pop((sender, token), None)
            if transfer.receiver == peer:
                population.later(sender, peer, ev.PushFailed(token, "connection reset"))
            elif push is not None:
                population.later(push.to, peer, ev.DeliveryBroken(peer, push.message, "connection reset"))

    def partitioned(self) -> None:
        """What is on its way to the other side does not arrive. Its sender is not told; its receiver misses the bytes."""
        population = self._population
        for key, transfer in list(self._transfers.items()):
            if not population.links.partition.separates(key[0], transfer.receiver):
                continue
            push = self._accepted.pop(key, None)
            self._drop(key, keep=True)
            if push is not None:
                event = ev.DeliveryBroken(key[0], push.message, "no more bytes")
                population.kernel.after(PARKED_S, lambda to=population.peers[push.to], e=event: population.feed(to, e))  # type: ignore[misc]

    def _offer(self, key: Key, push: ef.Push) -> None:
        population, sender = self._population, key[0]
        target = population.peers[push.to]
        if key not in self._transfers:
            return
        if population.links.partition.separates(sender, push.to):
            self._drop(key, keep=True)
            return
        event = ev.Offered(sender, push.message)
        if population.hears(target, event):
            self._answer(key, push, target, event)
        elif key not in self._transfers:
            pass  # it died just now, and its connections with it
        elif not target.alive:
            self._drop(key)
            population.later(sender, push.to, ev.PushFailed(push.token, "connection refused"))
        else:
            target.waiting.append(ev.DeliveryBroken(sender, push.message, "frozen"))
            self._drop(key, keep=True)

    def _answer(self, key: Key, push: ef.Push, target: SimulatedPeer, event: ev.Offered) -> None:
        population = self._population
        effects = target.machine.handle(event, population.kernel.now)
        answer = next(e for e in effects if isinstance(e, ef.Answer))
        if answer.verdict is not Verdict.ACCEPTED:
            self._drop(key)
        else:
            self._accepted[key] = push
        population.later(key[0], push.to, ev.PushAnswered(push.token, answer.verdict, answer.detail))
        for effect in effects:
            population.carry_out(target, effect)

    def _arrived(self, key: Key, push: ef.Push, began: float) -> None:
        population = self._population
        if population.links.partition.separates(key[0], push.to):
            return
        transfer = self._transfers.pop(key, None)
        accepted = self._accepted.pop(key, None)
        target, sender = population.peers[push.to], population.peers[key[0]]
        if transfer is None or accepted is None or not target.alive or not sender.alive:
            return
        reason = self.refuses(key[0], push)
        if reason:
            population.feed(target, ev.DeliveryBroken(key[0], push.message, reason, refused=True))
            population.later(key[0], push.to, ev.PushFailed(push.token, f"refused: {reason}"))
            return
        self._count(key[0], push)
        self._on_arrival(key[0], push, began)
        population.feed(target, ev.Delivered(key[0], push.message))
        if not target.frozen:
            population.later(key[0], push.to, ev.PushDelivered(push.token, population.kernel.now - began))

    def _count(self, sender: PeerId, push: ef.Push) -> None:
        """A tensor that its sender has sent before, whole, to whomever."""
        sent = (sender, type(push.message).__name__, push.message.microbatch)
        if sent in self._sent:
            self.bytes_resent += self._sizes.of_push(push.message)
        self._sent.add(sent)

    def _drop(self, key: Key, keep: bool = False) -> None:
        """Stop a transfer; `keep` when the sender does not learn of it (a frozen receiver)."""
        transfer = self._transfers.get(key)
        if transfer is not None:
            self._population.links.stop(transfer)
            if not keep:
                del self._transfers[key]
