"""What must hold at every moment of every run, and at its end.

At every event: no stage peer holds more than its capacity; what is computed of an iteration is computed while its weights are
there, which with delayed steps are those of the version before; a gradient that was averaged was exactly the member's share;
nothing is held of a committed iteration. At the end: all attempts that were committed in an iteration are one and the same, in
all stages; every microbatch is in the gradient of every stage exactly once, or of none (`recovery = fast`: at most once); peers
of a stage group that serve at the same version have weights of the same commits, and equal weights, but for what each has
learned by itself since the last average of copies; a step that one has skipped all have; what
every data peer says that the peers have contributed is what the stage groups have averaged in the iterations before, and
nothing else. Where the network was partitioned, both sides may have committed an iteration; in the end the weights of all come
from one of the two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.core.lifecycle import HOLDS_CAPACITY
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Place, Stage
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.wire.messages import Ballot, Prepare
from gwtf_p2p.simulation.world.copies import alike
from gwtf_p2p.simulation.world.world import World


class InvariantError(AssertionError):
    """The protocol has broken a promise. Our bug."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one run: microbatches that entered all stages, that a data peer had but a stage missed, that counted twice."""

    done: int
    lost: int
    double: int


@dataclass
class Invariants:
    """Listens to a world through `before_event`; `check` at the end returns the tally or raises InvariantError."""

    world: World
    stages: int
    exact: bool = True
    prepares: dict[tuple[int, Stage, Ballot], Prepare] = field(default_factory=dict)
    steps: dict[PeerId, dict[int, Ballot]] = field(default_factory=dict)
    _latest: dict[int, Ballot] = field(default_factory=dict)
    _of_iteration: dict[int, set[Ballot]] = field(default_factory=dict)
    _skips: dict[int, dict[PeerId, bool]] = field(default_factory=dict)

    def before_event(self, peer: PeerId, event: ev.Event, now: float) -> None:
        """To be called by `World.on_event`: what the events so far have led to, and what this one tells."""
        machine = self.world.peers[peer].machine
        participant = machine.participant
        if isinstance(machine, StagePeer) and machine.capacity and not machine.queues:
            self._expect(machine.ctx.occupancy <= machine.capacity, f"{peer} holds {machine.ctx.occupancy}")
        preparing = participant.preparing
        if isinstance(event, ev.AverageDone) and participant.share.averaging and preparing is not None:
            if (event.iteration, event.attempt) == (preparing.iteration, preparing.attempt):
                share = preparing.share_of(peer)
                self._expect(share == participant.share.counted, f"{peer} averaged another gradient than its share")
                self.prepares[preparing.iteration, preparing.stage, preparing.ballot] = preparing
        elif isinstance(event, ev.Stepped) and participant.share.stepping and preparing is not None:
            self.steps.setdefault(peer, {})[event.iteration] = preparing.ballot
            self._latest[event.iteration] = preparing.ballot
            self._of_iteration.setdefault(event.iteration, set()).add(preparing.ballot)
            self._skips.setdefault(event.iteration, {})[peer] = participant.share.applied_norm < 0
            if preparing.skipped_for:  # nothing was averaged
                self.prepares[preparing.iteration, preparing.stage, preparing.ballot] = preparing
        elif isinstance(event, (ev.Started, ev.Downloaded)):
            self.steps.pop(peer, None)
        elif isinstance(event, ev.Computed) and event.work is not ev.Work.AUDIT and event.microbatch in machine.ctx.held:
            has, needs = participant.weights, event.microbatch.iteration
            right = needs - machine.ctx.life.ahead <= has <= needs or participant.out_of_step
            self._expect(right, f"{peer} computes {event.microbatch} with version {has}")
        if isinstance(event, ev.TimerFired | ev.ViewChanged):
            old = [m for m in machine.ctx.held if m.iteration < participant.version]
            self._expect(not old, f"{peer} at iteration {participant.version} still holds {old[:3]}")

    def check(self) -> Tally:
        """At the end of a run."""
        for peer in self.world.peers.values():
            held = peer.machine.ctx.held.values()
            occupied = sum(h.phase in HOLDS_CAPACITY for h in held)
            self._expect(occupied == peer.machine.ctx.occupancy, f"{peer.id}: {occupied} slots are taken")
        self._check_versions()
        self._check_copies()
        self._check_contributions()
        tally = Counter[str]()
        for iteration, ballot in sorted(self._latest.items()):
            tally += self._check_iteration(iteration, ballot)
        return Tally(tally["done"], tally["lost"], tally["double"])

    def committed(self, iteration: int) -> dict[Stage, Counter[MicrobatchId]]:
        """How often each microbatch is in the gradient of each stage."""
        ballot = self._latest[iteration]
        return {
            stage: Counter(m for share in prepare.shares for m in share.microbatches)
            for (i, stage, b), prepare in self.prepares.items()
            if (i, b) == (iteration, ballot)
        }

    def _check_iteration(self, iteration: int, ballot: Ballot) -> Counter[str]:
        committed = self.committed(iteration)
        self._expect(set(committed) == set(range(self.stages + 1)), f"iteration {iteration}: stages {sorted(committed)}")
        double = sum(n - 1 for counts in committed.values() for n in counts.values())
        self._expect(double == 0, f"iteration {iteration}: {double} microbatches counted twice")
        wanted = set(committed[DATA_STAGE])
        everywhere = set.intersection(*(set(counts) for counts in committed.values()))
        extra = set.union(*(set(counts) for counts in committed.values())) - wanted
        self._expect(not extra, f"iteration {iteration}: {sorted(extra)[:3]} are not in every stage")
        lost = wanted - everywhere
        self._expect(not lost or not self.exact, f"iteration {iteration}: {sorted(lost)[:3]} are missing in a stage")
        return Counter(done=len(everywhere), lost=len(lost), double=double)

    def _check_versions(self) -> None:
        """Weights that are equal by version must come from the same commits."""
        well = {peer: steps for peer, steps in self.steps.items() if self._is_well(peer)}
        if self.world.links.partition.has_been:
            self._latest |= {iteration: ballot for steps in well.values() for iteration, ballot in steps.items()}
        for peer_id, steps in well.items():
            for iteration, ballot in steps.items():
                right = self._latest[iteration]
                self._expect(ballot == right, f"{peer_id} applied {ballot} in iteration {iteration}, others {right}")
        for iteration, skips in self._skips.items():
            self._expect(len(set(skips.values())) == 1, f"iteration {iteration} was skipped by some alone: {skips}")

    def _is_well(self, peer_id: PeerId) -> bool:
        """It serves, and honestly; who is left out hears of no epoch."""
        peer = self.world.peers[peer_id]
        cheats = peer_id in self.world.audits.cheats
        return peer.alive and not peer.frozen and not peer.machine.participant.out_of_step and not cheats

    def _check_copies(self) -> None:
        """Where the run says that copies of a stage are equal, all that serve with them have the same."""
        copies = self.world.weights.copies
        found: dict[tuple[Stage, int, int], dict[PeerId, str]] = {}
        for peer in self.world.peers.values():
            participant = peer.machine.participant
            serves = peer.alive and not peer.frozen and not participant.out_of_step and not participant.share.stepping
            was_skipped = copies.sync.is_on and participant.progress.skipped > 0
            if serves and copies.sync.is_whole(participant.weights) and not was_skipped:
                found.setdefault(alike(peer), {})[peer.id] = copies.of(peer, participant.weights)
        for (stage, _, version), named in found.items():
            self._expect(len(set(named.values())) == 1, f"copies of stage {stage} differ at version {version}: {named}")

    def ledgers(self) -> dict[PeerId, tuple[Counter[Place], Counter[Place]]]:
        """Of each data peer that is well: whose microbatches of which stage its receipts add up to, and how many of them are in
        the averages of the commits that its weights come from: two ways to one number."""
        found = {}
        for peer in self.world.peers.values():
            participant = peer.machine.participant
            if peer.machine.ctx.stage != DATA_STAGE or not peer.alive or peer.frozen or participant.out_of_step:
                continue
            if participant.share.stepping:
                continue
            averaged: Counter[Place] = Counter()
            for (iteration, stage, ballot), prepare in self.prepares.items():
                counts = iteration < participant.weights and not prepare.skipped_for
                if counts and ballot == self._latest.get(iteration):
                    places = [(stage, participant) for participant in prepare.participants]
                    averaged += Counter(dict(zip(places, prepare.weights, strict=True)))
            sums = peer.contributions.get(participant.weights, Contributions())
            found[peer.id] = Counter({place: c.microbatches for place, c in sums.of.items()}), averaged
        return found

    def _check_contributions(self) -> None:
        well = [steps for peer, steps in self.steps.items() if self._is_well(peer)]
        twice = {iteration for iteration, ballots in self._of_iteration.items() if len(ballots) > 1}
        if self.world.links.partition.has_been and any(all(i not in steps for steps in well) for i in twice):
            return  # which of two commits the weights of all come from can be told of no peer any more
        for peer, (said, averaged) in self.ledgers().items():
            differ = {place: (said[place], averaged[place]) for place in said | averaged if said[place] != averaged[place]}
            version = self.world.peers[peer].machine.participant.weights
            self._expect(not differ, f"{peer} at version {version}: contributions differ: {differ}")

    def _expect(self, condition: bool, what: str) -> None:
        if not condition:
            raise InvariantError(f"{self.world.kernel.now:.3f} s: {what}")
