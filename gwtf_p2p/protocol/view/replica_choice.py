"""Who keeps copies of whose checkpoints? Peers of the neighbouring stages, so that the loss of one machine loses no stage.

The stages lie in a ring (stage 0, the data peers', follows the last one), so every stage has neighbours. Of the peers there,
those with the highest hash of (stage, peer) keep the copies: all peers with equal views agree, without talking, and a peer
that comes or goes changes little (rendezvous hashing).

Which versions may go? A stage that is lost has only its copies, and they are worth nothing unless all other stages still have
one of the same version. Copies may take long, and iterations may be short, so the newest versions alone will not do:
- A version is *secured* when every stage has it twice, in a peer of its own and in a copy (`secured_version`, by the records).
  Nobody drops the secured version before a later one is. Before there is any, the oldest takes its place: the first checkpoint
  of a run is the first that is copied. After going back, it is the version that the swarm went back to.
- Of the versions after it, everybody keeps and copies the *roundest*: the one with the largest power of two in it. Any stretch
  of checkpoints has only one, so peers that know different parts of it agree without talking. The longer a copy takes, the
  rounder the versions that are copied, and the longer they are kept: the secured version moves on at any speed.
- The version whose evaluation is the best so far (`view/evaluations`) stays, and is copied, where the run keeps it.
- Others may know sooner than a peer what is secured now, and drop the version before it. So a peer also keeps those of its own
  stage's versions after the secured one that are copied already: the next secured version is one of them.
So any stage may be lost at any moment, and besides the newest a few versions are kept, however long the run.

Records tell only what is copied, so peers ask each other what they keep (`CopySearch`), a few at a time in turn:
what one has said stands until it is asked again, and looking costs the same in stages of any size. All stages write their
checkpoints after the same iterations, so a peer that has written none and hears nothing new asks more and more rarely.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.view.network_view import NetworkView

MOST_ASKED, ASKED_IN_TURN = 16, 2
"""Peers that may have copies of a peer's own stage, and how many are asked at a time, besides those that are to have them."""

MOST_DONORS = 3
"""Of a stage of which a peer keeps copies, how many are asked at a time, in turn."""

LOOK_S, MOST_LOOK_S = 2.0, 20.0
"""Between two looks for copies: while there is news, and when there has been none for long."""

Kept = tuple[int, tuple[int, ...]]
"""The epoch that a peer is in, and which versions of a stage it keeps."""

NOTHING: Kept = (-1, ())
"""Of one that does not answer."""


def neighbouring_stages(stage: Stage, stages: int) -> tuple[Stage, ...]:
    """The stages before and after it in the ring of 0 to `stages`."""
    ring = stages + 1
    return tuple(sorted({Stage((stage - 1) % ring), Stage((stage + 1) % ring)} - {stage}))


def keepers(view: NetworkView, stage: Stage, copies: int) -> tuple[PeerId, ...]:
    """The peers that keep copies of this stage's checkpoints, fewer than `copies` if there are no more."""
    near = [peer for other in neighbouring_stages(stage, view.stages) for peer in view.peers_of_stage(other)]
    ranked = sorted(near, key=lambda peer: hashlib.sha256(f"{stage}/{peer}".encode()).digest(), reverse=True)
    return tuple(ranked[:copies])


def kept_by(view: NetworkView, me: PeerId, stage: Stage, copies: int) -> tuple[Stage, ...]:
    """The stages whose checkpoints this peer, of `stage`, has to keep."""
    return tuple(near for near in neighbouring_stages(stage, view.stages) if me in keepers(view, near, copies))


def secured_version(view: NetworkView, epoch: int) -> int | None:
    """The newest version of this epoch that every stage has twice, as the records say; None if there is none."""
    had: list[set[int]] = [set() for _ in range(view.stages + 1)]
    for record in view.records.values():
        if record.epoch == epoch and record.stage <= view.stages:
            had[record.stage].update(record.copied)
    return max(set.intersection(*had), default=None)


def worth_keeping(
    versions: Iterable[int], newest: int, secured: int | None, copied: Iterable[int] = (), best: int | None = None
) -> set[int]:
    """Of the versions of one stage: the secured one, the roundest and the `copied` ones after it, the `best`, and so many of
    the newest."""
    there = sorted(set(versions))
    later = {version for version in copied if secured is None or version > secured}
    return {*there[-newest:], *worth_copying(there, secured, best), *later.intersection(there)}


def copies_worth_keeping(versions: Iterable[int], newest: int, secured: int | None, best: int | None = None) -> set[int]:
    """The same of another stage, two of the newest at least: a copy just made is not dropped for the next one."""
    return worth_keeping(versions, max(2, newest), secured, best=best)


def worth_copying(versions: Iterable[int], secured: int | None, best: int | None = None) -> tuple[int, ...]:
    """Of the versions that a stage has: the secured one, then the roundest after it, then the best."""
    there = sorted(set(versions))
    first = secured if secured is not None else min(there, default=0)
    later = [version for version in there if version > first]
    found = (*([first] if first in there else []), *([max(later, key=_roundness)] if later else []))
    return (*found, best) if best is not None and best in there and best not in found else found


def _roundness(version: int) -> tuple[int, int]:
    return version & -version, version


@dataclass(frozen=True, slots=True)
class Copy:
    """A version of another stage that is worth a copy here, and who of those that were asked has it."""

    version: int
    donors: tuple[PeerId, ...]


class CopySearch:
    """Of one peer of `stage`: whom it asks at each look for copies of its own stage, and who then has what; whom for those that
    it makes of others. `serves` where it is named: whether the peer has weights; without, everybody may have what it needs."""

    def __init__(self, stage: Stage, copies: int) -> None:
        self._stage, self._copies = stage, copies
        self._heard: dict[PeerId, Kept] = {}
        self._offers: dict[tuple[PeerId, Stage], Kept] = {}
        self._turns: Counter[Stage] = Counter()
        self._known: object = None
        self._looked_at, self._pause_s = -MOST_LOOK_S, LOOK_S

    def is_due(self, view: NetworkView, kept: Sequence[int], now: float) -> bool:
        """Whether a peer that serves, and has these versions of its stage on its disk, is to look now. To be asked every
        `LOOK_S`: then it is while there is news, and less and less often while there is none.

        News is whoever comes or goes, what a record tells of copies, another own version, and what somebody says for the first
        time or says otherwise than the last time.
        """
        known = tuple(kept), [(r.peer, r.stage, r.epoch, r.copied) for r in view.records.values()]
        if known != self._known:
            self._known, self._pause_s = known, LOOK_S
        if now - self._looked_at < self._pause_s - LOOK_S / 2:
            return False
        self._looked_at, self._pause_s = now, min(2 * self._pause_s, MOST_LOOK_S)
        return True

    def asked(self, view: NetworkView, serves: bool) -> tuple[PeerId, ...]:
        """Whom to ask at this look: those that are to keep copies, and a few of those that may have kept them before."""
        near = self._near(view) if serves else tuple(view.records)
        self._heard = {peer: kept for peer, kept in self._heard.items() if peer in near}
        if not serves:
            return near
        first = len(keepers(view, self._stage, self._copies))
        return (*near[:first], *self._in_turn(near[first:], self._stage, ASKED_IN_TURN))

    def heard(self, asked: Iterable[PeerId], answers: Mapping[PeerId, Kept]) -> None:
        """What those that were asked keep; who has not answered keeps nothing."""
        said = dict.fromkeys(asked, NOTHING) | dict(answers)
        if any(self._heard.get(peer) != kept for peer, kept in said.items()):
            self._pause_s = LOOK_S
        self._heard |= said

    def offered(self, stage: Stage, answers: Mapping[PeerId, Kept]) -> None:
        """What peers of another stage have to be copied (`donors`)."""
        said = {(peer, stage): kept for peer, kept in answers.items()}
        if any(self._offers.get(by) != kept for by, kept in said.items()):
            self._pause_s = LOOK_S
        self._offers |= said

    def found(self, epoch: int) -> dict[int, tuple[PeerId, ...]]:
        """Versions of the own stage, in this epoch, and who has them."""
        return who_keeps(self._heard, epoch)

    def donors(self, view: NetworkView, stage: Stage) -> tuple[PeerId, ...]:
        """Peers of another stage that are asked what there is to be copied, others each time."""
        self._offers = {by: kept for by, kept in self._offers.items() if by[0] in view.records}
        return self._in_turn(sorted(view.peers_of_stage(stage)), stage, MOST_DONORS)

    def _near(self, view: NetworkView) -> tuple[PeerId, ...]:
        """Those who are to keep copies first, then others who may have kept them before."""
        stages = neighbouring_stages(self._stage, view.stages)
        near = sorted(peer for other in stages for peer in view.peers_of_stage(other))
        return tuple(dict.fromkeys((*keepers(view, self._stage, self._copies), *near)))[:MOST_ASKED]

    def _in_turn(self, peers: Sequence[PeerId], stage: Stage, most: int) -> tuple[PeerId, ...]:
        """As many of these, who are asked about a stage, others each time."""
        at, count = self._turns[stage], min(most, len(peers))
        self._turns[stage] += count
        return tuple(peers[(at + number) % len(peers)] for number in range(count))


def who_keeps(heard: Mapping[PeerId, Kept], epoch: int) -> dict[int, tuple[PeerId, ...]]:
    """The versions of this epoch, ascending, with those that keep them, by id."""
    versions = sorted({version for of, kept in heard.values() if of == epoch for version in kept})
    return {
        version: tuple(sorted(peer for peer, (of, kept) in heard.items() if of == epoch and version in kept))
        for version in versions
    }


def next_copy(
    there: Mapping[int, tuple[PeerId, ...]], here: Collection[int], secured: int | None, best: int | None = None
) -> Copy | None:
    """Of the versions that another stage has, with who has them: the first that is worth a copy and is not here."""
    wanted = (version for version in worth_copying(there, secured, best) if version not in here)
    return next((Copy(version, there[version]) for version in wanted), None)
