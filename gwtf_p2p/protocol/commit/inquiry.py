"""What a new coordinator concludes from where everybody stands. The rule is stated and justified in `promise`.

Two more cases. Peers that are *ahead* have had a commit that others missed: whoever has prepared the same attempt gets it
now, and a coordinator that has not is behind, if those ahead can go on alone, that is if there is one in every stage. If not,
that commit has reached too few: the swarm has to *go back* to the newest version that every stage still has, as it must when
all peers of a stage are gone with their weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.commit.attempt import norm_of
from gwtf_p2p.protocol.commit.certifying import certificate_of
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Ballot, Commit, Prepare, Standing, commit_of

Replies = dict[PeerId, Standing]


@dataclass
class Inquiry:
    """Asking everybody where they stand, with a number that bars lower attempts."""

    number: int
    asked: set[PeerId]
    replies: Replies = field(default_factory=dict)

    def waiting_for(self) -> list[PeerId]:
        return sorted(self.asked - self.replies.keys())

    def note(self, sender: PeerId, standing: Standing, position: tuple[int, int], me: PeerId) -> bool:
        """Take an answer; False for what was said before the question was heard."""
        concerned = standing.position == position and not standing.joining
        if sender not in self.asked or (concerned and (standing.promised or Ballot(0, me)) < Ballot(self.number, me)):
            return False
        self.replies[sender] = standing
        return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """`commit` goes to `to_commit`. `behind`: the swarm has gone on without the coordinator. `refused`: somebody leads higher.

    `go_back`: what some have committed cannot be gone on from.
    """

    reason: str
    commit: Commit | None = None
    to_commit: tuple[PeerId, ...] = ()
    behind: bool = False
    refused: Ballot | None = None
    go_back: bool = False


def decide(inquiry: Inquiry, position: tuple[int, int], stages: int, me: PeerId) -> Outcome:
    """Everybody who can be reached has answered: commit an attempt, step back, or begin a new one."""
    here = {peer: s for peer, s in inquiry.replies.items() if s.position == position and not s.joining}
    ahead = {peer: s for peer, s in inquiry.replies.items() if s.position > position and not s.joining}
    if ahead:
        return _when_some_are_ahead(here, ahead, position, stages, me)
    refused = max((s.promised for s in here.values() if s.promised is not None), default=None)
    if refused is not None and refused > Ballot(inquiry.number, me):
        return Outcome(f"attempt {refused.attempt} of {refused.coordinator} is ahead", refused=refused)
    prepared = {s.prepare.ballot for s in here.values() if s.prepared and s.prepare is not None}
    if not prepared:
        return Outcome(f"nobody of {len(here)} has prepared anything")
    ballot = max(prepared)
    doubt = _why_not_committed(inquiry.replies, position, stages, ballot)
    if doubt is not None:
        return Outcome(doubt)
    ready = _ready(here, ballot)
    reason = f"all {len(ready)} that answer have prepared attempt {ballot.attempt} of {ballot.coordinator}"
    prepare, said = _prepare_of(here, ballot), {p: s.as_prepared for p, s in here.items() if p in ready}
    norm = norm_of({p: (s.stage, s.squared_norm) for p, s in here.items() if p in ready})
    commit = commit_of(prepare, norm, certificate_of(prepare, {p: s for p, s in said.items() if s is not None}))
    return Outcome(reason, commit, ready, behind=me not in ready)


def common_version(replies: Replies, past: Past, stages: int) -> int | None:
    """The newest version that some peer of every stage has the weights of, or a checkpoint."""
    had: list[set[int]] = [set() for _ in range(stages + 1)]
    for standing in replies.values():
        had[standing.stage] |= available(standing, past)
    return max(set.intersection(*had), default=None)


def available(standing: Standing, past: Past) -> set[int]:
    """Versions that a peer could put in place. Those of another epoch may be of weights that differ."""
    there = set(standing.kept) | (set() if standing.syncing else {standing.version})
    return {version for version in there if past.shares(standing.epoch, version)}


def stages_without(version: int, replies: Replies, past: Past, stages: int) -> list[Stage]:
    """Stages of which nobody has this version."""
    found = {s.stage for s in replies.values() if version in available(s, past)}
    return [Stage(k) for k in range(stages + 1) if k not in found]


def nearest_version(replies: Replies, past: Past, stages: int) -> tuple[int, list[Stage]]:
    """The version that most stages have, the newest of several, and the stages that lack it."""
    there = {version for standing in replies.values() for version in available(standing, past)}
    ranked = [(-len(stages_without(version, replies, past, stages)), version) for version in there]
    nearest = max(ranked)[1] if ranked else 0
    return nearest, stages_without(nearest, replies, past, stages)


def _when_some_are_ahead(here: Replies, ahead: Replies, position: tuple[int, int], stages: int, me: PeerId) -> Outcome:
    epoch, iteration = position
    first = min(ahead)
    reason = f"{first} is at iteration {ahead[first].version}"
    next_one = [s for s in ahead.values() if s.position == (epoch, iteration + 1)]
    for ballot in sorted({s.committed for s in next_one if s.committed is not None}):
        ready = _ready(here, ballot)
        if ready:
            told = next(s for s in next_one if s.committed == ballot)
            commit = commit_of(_prepare_of(here, ballot), told.gradient_norm, told.certificate)
            return Outcome(reason, commit, ready, behind=me not in ready)
    goes_on = {s.stage for s in ahead.values()} == set(range(stages + 1)) or any(s.epoch > epoch for s in ahead.values())
    return Outcome(reason, behind=goes_on, go_back=not goes_on)


def _why_not_committed(replies: Replies, position: tuple[int, int], stages: int, ballot: Ballot) -> str | None:
    """Evidence that an attempt was not committed and will not be; None when it may have been."""
    attempt = f"attempt {ballot.attempt} of {ballot.coordinator}"
    ready = {p: s for p, s in replies.items() if s.position == position and not s.joining and _has_prepared(s, ballot)}
    prepares = [s.prepare for s in ready.values() if s.prepare is not None]
    lacking = sorted(p for prepare in prepares for p in prepare.participants if p in replies and p not in ready)
    if lacking:
        return f"{lacking[0]} has not prepared {attempt}"
    for stage in range(stages + 1):
        digests = {s.digest for s in ready.values() if s.stage == stage}
        if len(digests) != 1:
            return f"stage {stage} has {len(digests)} averages of {attempt}"
    return None


def _has_prepared(standing: Standing, ballot: Ballot) -> bool:
    return standing.prepared and standing.prepare is not None and standing.prepare.ballot == ballot


def _ready(here: Replies, ballot: Ballot) -> tuple[PeerId, ...]:
    return tuple(sorted(peer for peer, standing in here.items() if _has_prepared(standing, ballot)))


def _prepare_of(here: Replies, ballot: Ballot) -> Prepare:
    return next(s.prepare for s in here.values() if s.prepare is not None and s.prepare.ballot == ballot)
