"""Audits in the simulator: signatures, digests, tensors on their way to an auditor, and peers that cheat.

There are no tensors, so what a peer has of a hop is a name, and whether its work is right is said here (`Cheat`). A signature
is a hash over the signer's name and the text: the world signs for each peer only what that peer has asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit.witness import Side
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.audit_messages import Digests, Hop
from gwtf_p2p.simulation.lines.links import REQUEST_TIMEOUT_S, Transfer
from gwtf_p2p.simulation.scenario.sizes import Sizes
from gwtf_p2p.simulation.world.population import Population, SimulatedPeer

RIGHT, WRONG = (1e-7, 1e-7), (0.5, 0.5)
"""What an honest auditor finds."""

AuditEffect = ef.Sign | ef.Digest | ef.Gather | ef.DropGathered


@dataclass(frozen=True, slots=True)
class Cheat:
    """What a peer does that it should not. `wrong`: this share of its work is not what it should be. As an auditor it `accuses`
    whomever it looks at, or `covers` them; as a worker it `denies` (testifies to other bytes) or is `silent`; as a neighbour it
    `misquotes`."""

    wrong: float = 0.0
    accuses: bool = False
    covers: bool = False
    denies: bool = False
    silent: bool = False
    misquotes: bool = False


HONEST = Cheat()


def signature_of(peer: PeerId, text: str) -> str:
    """What this peer's key makes of a text."""
    return hashlib.sha256(f"{peer}\0{text}".encode()).hexdigest()


def is_signed(peer: PeerId, text: str, signature: str) -> bool:
    """See `Context.signed_by`."""
    return signature == signature_of(peer, text)


class SimulatedAudits:
    """Of a world. `cheats` are the peers that are not honest; `bytes` is what has been sent to auditors."""

    def __init__(self, population: Population, sizes: Sizes) -> None:
        self.cheats: dict[PeerId, Cheat] = {}
        self.bytes = 0
        self._population, self._sizes = population, sizes
        self._hops: dict[tuple[PeerId, MicrobatchId], Hop] = {}
        self._coming: dict[tuple[PeerId, MicrobatchId], list[Transfer]] = {}

    def carry_out(self, peer: SimulatedPeer, effect: AuditEffect) -> None:
        """What a peer wants of its key, its tensors, and the neighbours of a worker."""
        match effect:
            case ef.Sign(name, text):
                self._soon(peer, ev.Signed(name, signature_of(peer.id, text)))
            case ef.Digest(microbatch):
                self._digest(peer, microbatch)
            case ef.Gather(hop, proof):
                self._gather(peer, hop, proof)
            case ef.DropGathered(microbatch):
                for transfer in self._coming.pop((peer.id, microbatch), []):
                    self._population.links.stop(transfer)

    def is_wrong(self, peer: PeerId, microbatch: MicrobatchId) -> bool:
        """This work of it is not what it should be."""
        share = self.cheats.get(peer, HONEST).wrong
        digest = hashlib.sha256(f"{peer} {microbatch}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < share * 2**32

    def differs(self, auditor: PeerId, microbatch: MicrobatchId) -> tuple[float, float]:
        """What an auditor finds, or says that it does."""
        cheat, hop = self.cheats.get(auditor, HONEST), self._hops[auditor, microbatch]
        if cheat.accuses or cheat.covers:
            return WRONG if cheat.accuses else RIGHT
        return WRONG if self.is_wrong(hop.worker, microbatch) else RIGHT

    def _soon(self, peer: SimulatedPeer, event: ev.Event) -> None:
        self._population.kernel.after(0.0, lambda: self._population.feed(peer, event))

    def _digest(self, peer: SimulatedPeer, microbatch: MicrobatchId) -> None:
        cheat = self.cheats.get(peer.id, HONEST)
        if cheat.silent:
            return
        digests = _digests(microbatch, peer.machine.ctx.stage)
        self._soon(peer, ev.Digested(microbatch, replace(digests, output="another") if cheat.denies else digests))

    def _gather(self, peer: SimulatedPeer, hop: Hop, proof: str) -> None:
        population, links = self._population, self._population.links
        self._hops[peer.id, hop.microbatch] = hop
        key = (peer.id, hop.microbatch)
        left = {Side.BEFORE, Side.AFTER}
        self._coming[key] = []

        def ends(digests: Digests | None, reason: str = "") -> None:
            if self._coming.pop(key, None) is not None:
                population.feed(peer, ev.Gathered(hop, digests, reason))

        def arrived(side: Side, giver: SimulatedPeer) -> None:
            left.discard(side)
            if not giver.alive:
                ends(None, "connection reset")
            elif not left:
                ends(self._had(hop))

        def asked(side: Side, giver: SimulatedPeer) -> None:
            reason = "connection refused" if not giver.alive else giver.machine.audits.why_not(peer.id, side, hop, proof)
            if giver.alive and giver.frozen:
                population.kernel.after(REQUEST_TIMEOUT_S, lambda: ends(None, "no answer"))
            elif reason or key not in self._coming:
                ends(None, reason)
            else:
                size = self._sizes.both_bytes
                self.bytes += size
                self._coming[key].append(links.start(giver.id, peer.id, size, partial(arrived, side, giver)))

        for side, neighbour in ((Side.BEFORE, hop.before), (Side.AFTER, hop.after)):
            giver = population.peers[neighbour]
            population.kernel.after(2 * links.latency_s(peer.id, neighbour), partial(asked, side, giver))

    def _had(self, hop: Hop) -> Digests:
        """What the worker's neighbours had, or say so."""
        digests = _digests(hop.microbatch, hop.stage)
        if self.cheats.get(hop.before, HONEST).misquotes:
            digests = replace(digests, input="misquoted")
        if self.cheats.get(hop.after, HONEST).misquotes:
            digests = replace(digests, output="misquoted")
        return digests


def _digests(microbatch: MicrobatchId, stage: int) -> Digests:
    activations = [f"{microbatch} activation {k}" for k in (stage - 1, stage)]
    gradients = [f"{microbatch} gradient {k}" for k in (stage, stage - 1)]
    return Digests(activations[0], activations[1], gradients[0], gradients[1])
