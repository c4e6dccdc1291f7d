"""The microbatches that one peer holds, indexed by what events name: their id, the name of a timer, the work that waits.

So an event costs the same however much is held. What a peer may still take follows from two counts that are kept here: how many
microbatches are not done, and of how many the activations are kept.
"""

from __future__ import annotations

import heapq

from gwtf_p2p.protocol.core.lifecycle import COMPUTING, HOLDS_CAPACITY, KEEPS_ACTIVATIONS, Held, Phase, Sending
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId

QUEUES = frozenset(phase for phase in Phase if phase.name.startswith("QUEUED"))


class Holdings:
    """`phases` is the table of steps that this kind of peer may take. `occupancy` counts the held microbatches that are not
    done, `activations` those between forward and backward whose activations are kept."""

    def __init__(self, phases: dict[Phase, frozenset[Phase]]) -> None:
        self.phases = phases
        self.by_id: dict[MicrobatchId, Held] = {}
        self.occupancy = 0
        self.activations = 0
        self._order = 0
        self._by_name: dict[str, Held] = {}
        self._queues: dict[Phase, list[tuple[int, int, MicrobatchId]]] = {phase: [] for phase in QUEUES}

    def add(self, held: Held) -> None:
        """Take a microbatch in; later ones come after it in every queue."""
        self._order += 1
        held.queue_at(self._order)
        self.by_id[held.id] = held
        self._by_name[held.name] = held
        self.occupancy += held.phase in HOLDS_CAPACITY

    def move(self, held: Held, phase: Phase, now: float) -> None:
        """Raises LocalProtocolError when the table does not allow the step."""
        before = held.phase
        held.to_phase(phase, self.phases, now)
        self.occupancy += (phase in HOLDS_CAPACITY) - (before in HOLDS_CAPACITY)
        if held.keeps:
            self.activations += (phase in KEEPS_ACTIVATIONS) - (before in KEEPS_ACTIVATIONS)
        if phase in QUEUES:
            heapq.heappush(self._queues[phase], (held.id.iteration, held.order, held.id))

    def drop_activations(self, held: Held) -> None:
        """Its backward will compute the forward again."""
        assert held.keeps and held.phase in KEEPS_ACTIVATIONS
        held.keep_if(False)
        self.activations -= 1

    def remove(self, held: Held) -> None:
        """It is held no more."""
        self.occupancy -= held.phase in HOLDS_CAPACITY
        self.activations -= held.keeps and held.phase in KEEPS_ACTIVATIONS
        del self.by_id[held.id], self._by_name[held.name]

    def named(self, name: str) -> Held | None:
        """The microbatch of this name, if it is held."""
        return self._by_name.get(name)

    def last_kept(self) -> Held | None:
        """Of the microbatches whose activations are kept and that are not being computed, the one that came last."""
        kept = (h for h in self.by_id.values() if h.keeps and h.phase in KEEPS_ACTIVATIONS and h.phase not in COMPUTING)
        return max(kept, key=lambda held: (held.id.iteration, held.order), default=None)

    def first_queued(self, phase: Phase, after: int = -1) -> Held | None:
        """The oldest microbatch of the lowest iteration above `after` that waits in this phase."""
        queue = self._queues[phase]
        while queue:
            iteration, order, microbatch = queue[0]
            held = self.by_id.get(microbatch)
            if held is not None and held.phase is phase and held.order == order:
                return held if iteration > after else self._first_after(phase, after)
            heapq.heappop(queue)
        return None

    def _first_after(self, phase: Phase, after: int) -> Held | None:
        waiting = (self.by_id.get(m) for iteration, _, m in self._queues[phase] if iteration > after)
        there = (held for held in waiting if held is not None and held.phase is phase)
        return min(there, key=lambda held: (held.id.iteration, held.order), default=None)

    def under_way(self, iteration: int) -> int:
        """How many of this iteration are held and not done."""
        if not self.occupancy:
            return 0
        return sum(held.phase in HOLDS_CAPACITY for held in self.by_id.values() if held.id.iteration == iteration)

    def got_from(self, peer: PeerId) -> list[Held]:
        """What this peer has handed here, sorted by id."""
        return sorted((held for held in self.by_id.values() if held.predecessor == peer), key=lambda held: held.id)

    def number_from(self, peer: PeerId) -> int:
        """How many this peer has handed here."""
        return sum(held.predecessor == peer for held in self.by_id.values())

    def shares(self, microbatch: MicrobatchId, peer: PeerId) -> bool:
        """Did it come from this peer, or go there?"""
        held = self.by_id.get(microbatch)
        return held is not None and peer in (held.predecessor, held.successor)

    def shared_with(self, peer: PeerId) -> tuple[MicrobatchId, ...]:
        """Handed to this peer, or got from it and not done yet."""
        handed = (Sending.PUSHING, Sending.AWAITING, Sending.RETURNED)
        return tuple(
            sorted(
                microbatch
                for microbatch, held in self.by_id.items()
                if (held.successor == peer and held.sending in handed)
                or (held.predecessor == peer and held.phase is not Phase.DONE)
            )
        )
