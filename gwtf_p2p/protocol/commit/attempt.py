"""What is averaged in one attempt at closing an iteration: the shares of every participant of every stage group, as the data
peers have reported them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from gwtf_p2p.protocol.averages.losses import mean_loss
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.ids import DATA_STAGE, MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.view.evaluations import with_reported
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.commit_messages import NOT_FINITE
from gwtf_p2p.protocol.wire.messages import Ballot, Commit, Evaluations, Finished, Missing, Prepare, Prepared, Share
from gwtf_p2p.protocol.wire.receipts import digest_of

NORM_TOLERANCE = 1e-5
"""Between norms of the same bits, relative: machines may sum in other orders."""


class Reports:
    """Of one coordinator: what the data peers have reported of the iteration at hand, their ledgers, and what of these turns
    out not to be there. `redoing` have something of theirs done again. `early` are reports of the next one."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.finished: dict[PeerId, Finished] = {}
        self.early: dict[PeerId, Finished] = {}
        self.redoing: set[PeerId] = set()
        self._began_at = self._last_at = 0.0

    def begin(self) -> None:
        """This data peer begins the iteration."""
        self._began_at = self._last_at = self.ctx.now

    def clear(self) -> None:
        """The iteration is over."""
        self.finished.clear()
        self.redoing.clear()

    def note(self, sender: PeerId, message: Finished) -> None:
        """A data peer is through with its microbatches."""
        self.redoing.discard(sender)
        if sender not in self.finished:  # else it says so again
            self._last_at = self.ctx.now
        self.finished[sender] = message

    def forget(self, data_peer: PeerId) -> None:
        """What it has reported is of no use."""
        self.finished.pop(data_peer, None)
        self.early.pop(data_peer, None)

    @property
    def took_s(self) -> float:
        """From the beginning of the iteration until the last one of those that are through was."""
        return self._last_at - self._began_at

    @property
    def since_s(self) -> float:
        """Since then."""
        return self.ctx.now - self._last_at

    def credited(self, data_peers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Whoever did something that these have reported."""
        ledgers = [self.finished[peer].ledger for peer in data_peers if peer in self.finished]
        return frozenset(peer for ledger in ledgers for credit in ledger for peer in credit.peers if peer)

    def is_beyond(self, patience_s: float, peer: PeerId) -> bool:
        """This data peer is so late, and nothing of its work is being done again."""
        return bool(self.finished) and peer not in self.redoing and self.since_s >= patience_s

    def void(self, peer: PeerId, microbatches: frozenset[MicrobatchId] | None) -> None:
        """A peer does not have (some of) what is credited to it: its data peers must have it redone and report again."""
        for data_peer, finished in sorted(self.finished.items()):
            void: dict[Stage, list[MicrobatchId]] = {}
            for credit in finished.ledger:
                microbatch = MicrobatchId(data_peer, finished.iteration, credit.index)
                for k, credited in enumerate(credit.peers, start=1):
                    if credited == peer and (microbatches is None or microbatch in microbatches):
                        void.setdefault(Stage(k), []).append(microbatch)
            if void:
                del self.finished[data_peer]
                self.redoing.add(data_peer)
            for stage, missing in void.items():
                self.ctx.emit(Send(data_peer, Missing(peer, stage, tuple(missing))))


@dataclass
class Attempt:
    """One try: who must average, and who has."""

    number: int
    groups: dict[Stage, Prepare]
    digests: dict[PeerId, str] = field(default_factory=dict)
    squared_norms: dict[PeerId, float] = field(default_factory=dict)
    said: dict[PeerId, Prepared] = field(default_factory=dict)
    committed: Commit | None = None

    @cached_property
    def participants(self) -> Mapping[PeerId, Stage]:
        """Of all groups, which do not change."""
        return {participant: stage for stage, prepare in sorted(self.groups.items()) for participant in prepare.participants}

    @property
    def is_complete(self) -> bool:
        """Everybody has averaged."""
        return self.participants.keys() <= self.digests.keys()

    def waiting_for(self) -> list[PeerId]:
        return [participant for participant in self.participants if participant not in self.digests]

    def disagreement(self) -> str | None:
        """Names a stage whose participants ended with different bytes."""
        for stage, prepare in sorted(self.groups.items()):
            if len({self.digests[m] for m in prepare.participants if m in self.digests}) > 1:
                return f"participants of stage {stage} ended with different averages"
            norms = [self.squared_norms[m] for m in prepare.participants if m in self.squared_norms]
            if norms and max(norms) - min(norms) > NORM_TOLERANCE * max(map(abs, norms)):
                return f"participants of stage {stage} ended with different norms of one average"
        return None

    @property
    def gradient_norm(self) -> float:
        """Of the whole model's average, once all have prepared; -1 where it is not finite."""
        return norm_of({peer: (stage, self.squared_norms.get(peer, 0.0)) for peer, stage in self.participants.items()})


def norm_of(squared: Mapping[PeerId, tuple[Stage, float]]) -> float:
    """The norm of the whole model's gradient from what participants say: (stage, squared norm of its average) of each.

    Each stage counts once, by what its first participant says: they have averaged to the same bits.
    """
    stages: dict[Stage, float] = {}
    for _, (stage, value) in sorted(squared.items()):
        stages.setdefault(stage, value)
    return norm_of_stages(stages.values())


def is_norm_of(squared: Collection[float], gradient_norm: float) -> bool:
    """It is the norm of the whole model's gradient, of whose stages these are the squared norms."""
    return math.isclose(norm_of_stages(squared), gradient_norm, rel_tol=NORM_TOLERANCE, abs_tol=1e-12)


def norm_of_stages(squared: Collection[float]) -> float:
    """Of the whole model's gradient, of whose stages these are the squared norms."""
    return NOT_FINITE if any(value < 0 for value in squared) else math.sqrt(math.fsum(squared))


def reported_loss(finished: Mapping[PeerId, Finished]) -> tuple[float, dict[PeerId, str]]:
    """The mean over all microbatches, and whose report is left out of it, and why."""
    return mean_loss({peer: (len(report.ledger), report.mean_loss) for peer, report in finished.items()})


def prepares(
    position: tuple[int, int],
    ballot: Ballot,
    base: Ballot | None,
    roster: Mapping[PeerId, Stage],
    finished: Mapping[PeerId, Finished],
    stages: int,
    *,
    evaluations: Evaluations | None = None,
) -> dict[Stage, Prepare]:
    """One `Prepare` per stage group: the credited peers with their shares, and the others of the roster with empty ones.

    `position` is (epoch, iteration), `evaluations` those before it.
    """
    epoch, iteration = position
    shares: dict[Stage, dict[PeerId, list[MicrobatchId]]] = {Stage(k): {} for k in range(stages + 1)}
    ledgers = [credit.peers for report in finished.values() for credit in report.ledger]
    credited = {(peer, k) for peers in ledgers for k, peer in enumerate(peers, start=1) if peer}
    did_something = {peer for peer, _ in credited}
    for peer, stage in roster.items():
        if peer not in did_something or (peer, stage) in credited:  # else it is where it has done something
            shares[stage][peer] = []
    for data_peer, report in sorted(finished.items()):
        shares[DATA_STAGE].setdefault(data_peer, [])
        for credit in report.ledger:
            microbatch = MicrobatchId(data_peer, iteration, credit.index)
            for k, peer in enumerate((data_peer, *credit.peers)):
                if peer:
                    shares[Stage(k)].setdefault(peer, []).append(microbatch)
    loss, _ = reported_loss(finished)
    staying = tuple(peer for peer, report in sorted(finished.items()) if not report.leaving)
    receipts = tuple(report.receipt for _, report in sorted(finished.items()) if report.receipt is not None)
    digest = digest_of(receipts)
    evaluations = with_reported(evaluations, iteration, (report.evaluated for _, report in sorted(finished.items())))
    return {
        stage: Prepare(
            iteration=iteration,
            attempt=ballot.attempt,
            coordinator=ballot.coordinator,
            stage=stage,
            shares=tuple(Share(peer, tuple(sorted(group[peer]))) for peer in sorted(group)),
            base=base,
            data_peers=staying,
            mean_loss=loss,
            epoch=epoch,
            receipts=receipts if stage == DATA_STAGE else (),
            receipts_digest=digest,
            evaluations=evaluations,
        )
        for stage, group in shares.items()
    }


def in_rows(prepare: Prepare, view: NetworkView | None, most: int) -> Prepare:
    """What is asked of a group: that it averages in rows where it is large enough for that and all its participants are known
    to be able to."""
    if not 2 <= most < len(prepare.participants) or view is None:
        return prepare
    records = view.records
    able = all(peer in records and records[peer].averages_in_rows for peer in prepare.participants)
    return replace(prepare, all_with_all=most) if able else prepare
