"""Records of peers that have shown nothing but a record: a few of them are taken at their word, a crowd is greeted first.

A record costs its maker a key and a signature, so one machine can publish a thousand of them. What plans, averages or waits for
peers that are not there loses time with each, so a peer is *proven* when it has said something here or has answered a question.
As long as at most `FEW` peers of the records are not proven, all count: a small swarm begins, and newcomers are used, without
any delay. When there are more, those that were not there before do not count until they are: each is asked once whether it is
there, in rounds of `AT_ONCE` at a time, and asked again when it has published another record and some time has passed, twice
as long after each failure. The records that a peer finds when it starts are shown to it when all of that crowd have been asked.

That everybody greets everybody grows with the square of the swarm. Of more than `CROWD` at once a stage peer therefore greets
a sample first, drawn by chance: where nearly all of it answer, the others are *vouched for*, else all are greeted. Data peers,
who plan with them, greet them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Ask
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.view.network_view import NetworkView

FEW = 32
"""Peers that are not proven and count all the same. Each that is not there costs one microbatch a detour, once."""

AT_ONCE = 128
"""Greetings under way: each is a small message, but one to nobody keeps a dialling socket for seconds."""

AGAIN_AFTER_S, MOST_S = 10.0, 600.0
"""From a greeting that failed to the next one to the same peer, at first and at most."""

GREETING_S = 2.0
"""For an answer: nothing is suspected, and silence makes nobody lost, so a far peer has more time than with other questions."""

MOST_REMEMBERED = 4096

CROWD = 512
"""Up to so many that are not proven everybody is greeted by everybody."""

SAMPLE, MOST_SILENT = 32, 3
"""Of a larger crowd: so many are asked for all, and so many of them may be silent. Where half of a crowd are nobody, one sample
in a million is as good as that."""


class Crowd:
    """Of many records that came at once: the sample that is asked, and whether its answers speak for all."""

    def __init__(self, peers: Sequence[PeerId], random: Random) -> None:
        self.peers = frozenset(peers)
        self.sample = sorted(random.sample(peers, SAMPLE))
        self._open, self._silent = {*self.sample}, 0

    @property
    def vouched(self) -> bool | None:
        """None until all of the sample have answered or failed."""
        return None if self._open else self._silent <= MOST_SILENT

    def is_decided_by(self, peer: PeerId, *, is_there: bool) -> bool:
        """Its greeting is over, and with it, perhaps, that of the whole sample."""
        if peer not in self._open:
            return False
        self._open.discard(peer)
        self._silent += not is_there
        return not self._open


@dataclass(frozen=True, slots=True)
class Absent:
    """A greeting was not answered: how often, with which record, and from when on it may be repeated."""

    times: int
    sequence_number: int
    until: float


class Probation:
    """Of one peer, over the records of those that may take part."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self._view: NetworkView | None = None
        self._proven: set[PeerId] = set()
        self._let_in: set[PeerId] = set()
        self._asked: set[PeerId] = set()
        self._queue: list[PeerId] = []
        self._absent: dict[PeerId, Absent] = {}
        self._first: set[PeerId] | None = None
        self._is_news = False
        self._vouched: set[PeerId] = set()
        self._crowd: Crowd | None = None
        self._members: frozenset[PeerId] = frozenset()
        self._missing: set[PeerId] = set()

    def saw(self, view: NetworkView) -> NetworkView | None:
        """What of these records counts now; None while the first ones are being greeted."""
        self._view, self._is_news = view, False
        self._forget_the_gone(view)
        unproven = sorted(self._missing)
        if len(unproven) <= FEW:
            self._let_in.update(unproven)
            self._queue.clear()
        else:
            fresh = [peer for peer in unproven if peer not in self._let_in]
            if self._first is None:
                self._first = set(fresh)
            greeted = [*sorted(self._let_in.intersection(unproven)), *self._asked_of(fresh)]
            self._queue = [peer for peer in greeted if self._is_due(peer, view)]
            self._greet()
        self._first = self._first & view.records.keys() - self._let_in if self._first else set()
        return self.shown

    def news(self) -> NetworkView | None:
        """What counts, if that has changed since it was asked; else None."""
        is_news, self._is_news = self._is_news, False
        return self.shown if is_news else None

    def heard(self, peer: PeerId) -> bool:
        """It has said something. True if it counts only since then: that is told when the round under way has ended, or at once
        when none is."""
        if peer in self._proven or self._view is None or peer not in self._view.records:
            return False
        was_shown = peer in self._let_in
        self._prove(peer)
        self._is_news = self._is_news or not (was_shown or self._asked)
        return not was_shown

    def _asked_of(self, fresh: list[PeerId]) -> Sequence[PeerId]:
        """Those to greet of peers that do not count yet."""
        if self.ctx.stage == DATA_STAGE or len(fresh) <= CROWD:
            return fresh
        crowd = self._crowd
        if crowd is None or (crowd.vouched is not None and len(crowd.peers.union(fresh)) > len(crowd.peers) + CROWD):
            draw = Random(f"{self.ctx.me} {self.ctx.incarnation} {self.ctx.now}")
            crowd = self._crowd = Crowd(fresh, draw)
        return fresh if crowd.vouched is False else crowd.sample

    def _sampled(self, peer: PeerId, *, is_there: bool) -> None:
        """What comes of a greeting for the crowd that the peer was drawn from."""
        crowd, view = self._crowd, self._view
        if crowd is None or view is None or not crowd.is_decided_by(peer, is_there=is_there):
            return
        if crowd.vouched:
            self._vouched |= crowd.peers
            self._missing -= crowd.peers
            self._first = self._first - crowd.peers if self._first else self._first
            self._is_news = True
        else:
            self._queue += [one for one in sorted(crowd.peers) if one in view.records and self._is_due(one, view)]

    def is_proven(self, peer: PeerId) -> bool:
        """Its record is here, and it has said something or has answered."""
        return peer in self._proven and self._view is not None and peer in self._view.records

    def answered(self, peer: PeerId) -> None:
        """It is there."""
        if self._view is not None and peer in self._view.records:
            self._prove(peer)
        self._sampled(peer, is_there=True)
        self._end(peer)

    def failed(self, peer: PeerId) -> None:
        """It has not answered, or nobody has."""
        if peer in self._asked and self._view is not None:
            record = self._view.records.get(peer)
            times = self._absent[peer].times + 1 if peer in self._absent else 1
            until = self.ctx.now + min(AGAIN_AFTER_S * 2 ** (times - 1), MOST_S)
            self._absent[peer] = Absent(times, record.sequence_number if record is not None else -1, until)
            self._sampled(peer, is_there=False)
        self._end(peer)

    def _prove(self, peer: PeerId) -> None:
        self._proven.add(peer)
        self._missing.discard(peer)
        self._let_in.discard(peer)
        self._absent.pop(peer, None)
        if self._first:
            self._first.discard(peer)

    def _end(self, peer: PeerId) -> None:
        """A greeting is over. What has come of a round is told once, when all of it are."""
        if self._first:
            self._first.discard(peer)
        if peer in self._asked:
            self._asked.discard(peer)
            if not self._asked:
                self._is_news = True
                self._greet()

    def _is_due(self, peer: PeerId, view: NetworkView) -> bool:
        absent = self._absent.get(peer)
        if absent is None:
            return peer not in self._asked
        is_news = view.records[peer].sequence_number != absent.sequence_number
        return is_news and self.ctx.now >= absent.until and peer not in self._asked

    def _greet(self) -> None:
        """The next round, unless one is under way."""
        if self._asked:
            return
        records = self._view.records if self._view is not None else {}
        while self._queue and len(self._asked) < AT_ONCE:
            peer = self._queue.pop(0)
            if peer in records and peer not in self._proven:
                self._asked.add(peer)
                self.ctx.emit(Ask(peer, (), GREETING_S))

    @property
    def shown(self) -> NetworkView | None:
        """What counts now; None while the first records are being greeted."""
        view = self._view
        if view is None or self._first:
            return None
        hidden = sorted(self._missing - self._let_in)
        return view.without(hidden) if hidden else view

    def _forget_the_gone(self, view: NetworkView) -> None:
        """And find who is not proven (`_missing`): of thousands of records, only when somebody has come or gone."""
        if view.members is self._members:
            return
        self._members = view.members
        self._let_in &= view.members
        self._vouched &= view.members
        if len(self._proven) > MOST_REMEMBERED:
            self._proven &= view.members
        if len(self._absent) > MOST_REMEMBERED:
            self._absent = {peer: absent for peer, absent in self._absent.items() if peer in view.records}
        self._missing = {*(view.members - self._proven - self._vouched)}
        self._missing.discard(self.ctx.me)
