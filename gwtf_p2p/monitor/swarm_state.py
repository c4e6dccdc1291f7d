"""A running swarm as an observer sees it: the records now, and what changed since it began to look.

Pure: records and a clock in, figures out. Nothing that a record says is believed without bounds: a figure of a size that no
run reaches is refused with its record and counted, so one peer cannot spoil the page for everybody.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from gwtf_p2p.live.measure.run_progress import HELD_OUT
from gwtf_p2p.monitor.ledger import SHOWN as SHOWN
from gwtf_p2p.monitor.ledger import called
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.stall.rules import SKIPPED
from gwtf_p2p.protocol.view.contributions_told import Told, told
from gwtf_p2p.protocol.view.evaluations import ends, from_figures, why
from gwtf_p2p.protocol.wire.contribution_record import ContributionRecord
from gwtf_p2p.protocol.wire.messages import Evaluations
from gwtf_p2p.protocol.wire.records import Completion, PeerState, RunRecord, StageRecord

EVENTS_KEPT = 200
LOSSES_KEPT = 2000
DEPARTED_KEPT = 30
RATE_SAMPLES = 12
PACE_ITERATIONS = 20
"""The time that is left is told by the median of so many iterations."""

LEAP = 1000
"""Iterations by which one peer's record can be ahead of all others'; beyond it the record is wrong, or a lie."""

MOST = 1 << 53
"""Whole numbers beyond it are exact neither in JSON's readers nor, a little later, in SQLite."""


WORDS = {
    PeerState.JOINING: "joining",
    PeerState.SYNCING: "fetching the weights",
    PeerState.ONLINE: "online",
    PeerState.DRAINING: "finishing, then leaving",
}
"""What events call a peer's state; the same words as on the page."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened `at` seconds of the observer's clock. `kind`: came, gone, moved, state, back, silent, answers."""

    at: float
    text: str
    kind: str = ""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One committed iteration as its data peers told it. `held_out_loss` None: not measured in it."""

    iteration: int
    loss: float
    iteration_s: float
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Departed:
    """A peer whose record has expired, and its stage."""

    peer: PeerId
    stage: int
    at: float


@dataclass
class SwarmState:
    """`losses` and `iteration_s` by iteration, as data peers published them. Totals count what was seen happening.

    `version` are the iterations that are committed: the most that a peer tells, but for one that is far ahead of all others.
    `silent` are peers that do not answer though their records live. `samples` are what the last look has brought.
    `told`: what the data peers say that everybody has contributed, the last that they said. `population` is another number
    whenever a peer has come, gone or moved.
    `advanced_at`: when the last commit was seen, or the first look before any. `refused`: records of the last look that say
    what cannot be.
    """

    run: RunRecord
    records: dict[PeerId, StageRecord] = field(default_factory=dict)
    silent: frozenset[PeerId] = frozenset()
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    departed: deque[Departed] = field(default_factory=lambda: deque(maxlen=DEPARTED_KEPT))
    losses: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    iteration_s: dict[int, float] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)
    samples: tuple[Sample, ...] = ()
    version: int = 0
    looks: int = 0
    seen_at: float = 0.0
    advanced_at: float = 0.0
    refused: int = 0
    told: Told = field(default_factory=Told)
    population: int = 0
    _online: Counter[int] = field(default_factory=Counter)
    _credited: dict[PeerId, deque[tuple[float, float]]] = field(default_factory=dict)

    def look(self, records: Sequence[StageRecord], now: float, silent: frozenset[PeerId] = frozenset()) -> list[Change]:
        """The records as they are now; returns what has changed. Of several records of a peer the newest counts."""
        newest: dict[PeerId, StageRecord] = {}
        self.refused = 0
        for record in records:
            if record is not self.records.get(record.peer) and not _can_be(record):
                self.refused += 1
                continue
            held = newest.get(record.peer)
            if held is None or record.sequence_number > held.sequence_number:
                newest[record.peer] = record
        changes = self._compare(newest, silent, now) if self.looks else []
        before = self.version
        news = [record for peer, record in newest.items() if self.records.get(peer) is not record]
        self.records, self.silent, self.seen_at = dict(sorted(newest.items())), silent & newest.keys(), now
        self.population += not self.looks or any(change.kind in ("came", "gone", "moved") for change in changes)
        self._online = self._count_online()
        self.version = _committed(newest.values())
        if not self.looks or self.version != before:
            self.advanced_at = now
        self.looks += 1
        if any(change.kind == "back" for change in changes):
            self._forget_from(self.version)
        self._note_progress()
        self._note_rates(news, now)
        self.changes.extend(changes)
        return changes

    def hear_contributions(self, records: Iterable[ContributionRecord], data_peers: Collection[PeerId]) -> None:
        """What was found of the contributions; nothing found is no news."""
        now = told(records, data_peers)
        if now.data_peers and now != self.told:
            self.told = now

    def frozen(self) -> SwarmState:
        """What other threads may read while this one looks again."""
        return replace(
            self,
            changes=self.changes.copy(),
            departed=self.departed.copy(),
            totals=self.totals.copy(),
            losses=dict(self.losses),
            held_out=dict(self.held_out),
            iteration_s=dict(self.iteration_s),
        )

    def _compare(self, newest: Mapping[PeerId, StageRecord], silent: frozenset[PeerId], now: float) -> list[Change]:
        told: list[Change] = []

        def tell(record: StageRecord, kind: str, text: str) -> None:
            told.append(Change(now, f"{name_of(record)} {text}", kind, record.peer))

        for peer in sorted({*self.records, *newest}):
            before, after = self.records.get(peer), newest.get(peer)
            if before is None and after is not None:
                self.totals["came"] += 1
                tell(after, "came", f"has come, {WORDS[after.state]}")
            elif after is None and before is not None:
                self.totals["gone"] += 1
                self.departed.append(Departed(peer, before.stage, now))
                tell(before, "gone", "is gone: its record has expired")
            elif before is not None and after is not None:
                if before.stage != after.stage:
                    self.totals["moved"] += 1
                    tell(before, "moved", f"has moved to stage {after.stage}")
                if before.state is not after.state:
                    tell(after, "state", f"is {WORDS[after.state]}, was {WORDS[before.state]}")
                if before.epoch != after.epoch:
                    tell(after, "back", f"has gone back to version {after.weights_version}")
                if peer in silent - self.silent:
                    self.totals["silent"] += 1
                    tell(after, "silent", "does not answer any more")
                if peer in self.silent - silent:
                    tell(after, "answers", "answers again")
        return told

    def _note_progress(self) -> None:
        version = self.version
        data = [r for r in self.records.values() if r.stage == DATA_STAGE and 0 < r.weights_version <= version]
        done = [r for r in data if "loss" in r.progress]
        samples = []
        for iteration in sorted({r.weights_version - 1 for r in done}):
            here = [r for r in done if r.weights_version - 1 == iteration]
            held_out = [r.progress[HELD_OUT] for r in here if HELD_OUT in r.progress]
            seconds = max(r.progress.get("iteration_s", 0.0) for r in here)
            loss = fmean(r.progress["loss"] for r in here)
            samples.append(Sample(iteration, loss, seconds, fmean(held_out) if held_out else None))
        self.samples = tuple(s for s in samples if self.losses.get(s.iteration) != s.loss)
        for sample in samples:
            self.remember(sample)

    def remember(self, sample: Sample) -> None:
        """Takes what one iteration came to, from the records or from an earlier monitor's history."""
        self.losses[sample.iteration], self.iteration_s[sample.iteration] = sample.loss, sample.iteration_s
        if sample.held_out_loss is not None:
            self.held_out[sample.iteration] = sample.held_out_loss
        for kept in (self.losses, self.iteration_s, self.held_out):
            while len(kept) > LOSSES_KEPT:
                del kept[min(kept)]

    def _forget_from(self, version: int) -> None:
        """Iterations that are done again: the swarm has gone back to this version."""
        for kept in (self.losses, self.iteration_s, self.held_out):
            for iteration in [i for i in kept if i >= version]:
                del kept[iteration]

    def _note_rates(self, news: Iterable[StageRecord], now: float) -> None:
        for peer in self._credited.keys() - self.records.keys():
            del self._credited[peer]
        for record in news:
            done = record.progress.get("microbatches", 0.0)
            seen = self._credited.setdefault(record.peer, deque(maxlen=RATE_SAMPLES))
            if seen and done < seen[-1][1]:
                seen.clear()  # it has started again and counts from nothing
            if not seen or done > seen[-1][1]:
                seen.append((now, done))

    # ---- figures

    @property
    def tokens_per_iteration(self) -> int:
        """Of all data peers together."""
        run = self.run
        return run.data_peers * run.microbatches_per_data_peer * run.microbatch_size * run.sequence_length

    @property
    def pace_s(self) -> float:
        """Median seconds of the last iterations; 0.0 while unmeasured."""
        last = [self.iteration_s[i] for i in sorted(self.iteration_s)[-PACE_ITERATIONS:] if self.iteration_s[i] > 0]
        return median(last) if last else 0.0

    @property
    def skipped_steps(self) -> int:
        """In a row, up to the newest commit, as its data peers tell it."""
        here = (r for r in self.records.values() if r.stage == DATA_STAGE and r.weights_version == self.version)
        return max((int(record.progress.get(SKIPPED, 0.0)) for record in here), default=0)

    @property
    def evaluations(self) -> Evaluations | None:
        """How they have gone so far, as the data peer that is furthest tells it."""
        data = [record for record in self.records.values() if record.stage == DATA_STAGE]
        told = [(r.weights_version, r.peer, found) for r in data if (found := from_figures(r.progress)) is not None]
        return max(told, key=lambda each: each[:2])[2] if told else None

    @property
    def ends_early(self) -> str:
        """Why the run has ended before its last iteration; '' if it has not, as far as its data peers tell."""
        known = self.evaluations
        ended = any(r.stage == DATA_STAGE and r.completion is not Completion.RUNS for r in self.records.values())
        return why(known) if known is not None and ended and ends(known, self.run.evaluation.patience) else ""

    @property
    def tokens_per_second(self) -> float:
        """By the last iteration's time; 0.0 while unmeasured."""
        seconds = self.iteration_s[max(self.iteration_s)] if self.iteration_s else 0.0
        return self.tokens_per_iteration / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last iterations; None when the run has no end, or no pace yet."""
        total, pace = self.run.total_iterations, self.pace_s
        return max(0, total - self.version) * pace if total and pace else None

    def microbatches_per_s(self, peer: PeerId) -> float | None:
        """What a peer was credited with per second, over its last few records; None while fewer than two told it."""
        seen = self._credited.get(peer)
        if not seen or len(seen) < 2:
            return None
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])

    def online(self) -> Counter[int]:
        """Peers by stage that microbatches can be sent to; silent ones are not among them. To be read only."""
        return self._online

    def _count_online(self) -> Counter[int]:
        found: Counter[int] = Counter(dict.fromkeys(range(self.run.stages + 1), 0))
        found.update(r.stage for r in self.records.values() if r.is_routable and r.peer not in self.silent)
        return found

    def by_stage(self) -> list[StageRecord]:
        """The records by stage and peer."""
        return sorted(self.records.values(), key=lambda r: (r.stage, r.peer))

    def by_state(self) -> Counter[tuple[int, PeerState]]:
        """How many peers each stage has in each state."""
        return Counter((r.stage, r.state) for r in self.records.values())


def name_of(record: StageRecord) -> str:
    """A peer as people are told of it."""
    role = "data peer" if record.stage == DATA_STAGE else f"peer of stage {record.stage}"
    return f"{role} {called(record.peer, record)}"


def _committed(records: Iterable[StageRecord]) -> int:
    """See `SwarmState.version`."""
    told = sorted(record.weights_version for record in records)
    if len(told) < 2:
        return told[0] if told else 0
    return max(version for version in told if version <= told[-2] + LEAP)


def _can_be(record: StageRecord) -> bool:
    """Whether the figures of a record are of a size that a run can reach."""
    account = record.account
    whole = (record.weights_version, record.capacity, record.occupancy, record.kept_bytes, record.memory_limit_bytes)
    counted = (*whole, record.sequence_number, *(account.recoveries.values() if account else ()))
    measured = (*record.progress.values(), *record.route_seconds.values(), account.useful_s if account else 0.0)
    return all(0 <= n < MOST for n in counted) and all(-MOST < x < MOST for x in measured)
