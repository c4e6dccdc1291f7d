"""Records of peers that have shown nothing but a record: a few of them are taken at their word, a crowd is greeted first.

A record costs its maker a key and a signature, so one machine can publish a thousand of them. What plans, averages or waits for
peers that are not there loses time with each, so a peer is *proven* when it has said something here or has answered a question.
As long as at most `FEW` peers of the records (in a large swarm one for each `OF_A_FEW` proven ones) are not proven, all count:
a small swarm begins, and newcomers are used, without any delay. When there are more, those that were not there before do not
count until they are: each is asked once whether it is there, in rounds of `AT_ONCE` at a time, and asked again when it has
published another record and some time has passed, twice as long after each failure. The records that a peer finds when it
starts are shown to it when all of that crowd have been asked.

That everybody greets everybody grows with the square of the swarm. Where there are records of more than `CROWD` peers, one
therefore greets a sample of a crowd first, drawn by chance: where nearly all of it answer, the others are *vouched for*, else
all are greeted. Data peers, who plan with them, draw a larger one: of a crowd that they vouch for hardly more than a twentieth
is nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Ask
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.trust.unproven import MOST_REMEMBERED, Crowd, Unproven
from gwtf_p2p.protocol.view.network_view import NetworkView, Partly

FEW = 32
"""Peers that are not proven and count all the same. Each that is not there costs one microbatch a detour, once."""

OF_A_FEW = 16
"""Proven peers for each that counts unproven, where that is more: what detours cost is small beside what those do."""

AT_ONCE = 128
"""Greetings under way: each is a small message, but one to nobody keeps a dialling socket for seconds."""

AGAIN_AFTER_S, MOST_S = 10.0, 600.0
"""From a greeting that failed to the next one to the same peer, at first and at most."""

GREETING_S = 2.0
"""For an answer: nothing is suspected, and silence makes nobody lost, so a far peer has more time than with other questions."""

CROWD = 512
"""Among so many records everybody is greeted by everybody."""

SAMPLE, MOST_SILENT = 32, 3
"""Of a crowd among more: so many are asked for all, and so many of them may be silent. Where half of a crowd are nobody, one
sample in a million is as good as that."""

SAMPLE_TO_PLAN = AT_ONCE
"""The same for a data peer, whose plans lead through all that it vouches for. It takes no longer: they are asked at once."""


class Sample:
    """Of a crowd whose records came at once: those that are asked, and whether their answers speak for all of it."""

    def __init__(self, crowd: Crowd, random: Random, size: int) -> None:
        self.crowd = crowd
        self.peers = sorted(random.sample(crowd.in_order, min(size, len(crowd.in_order))))
        self._open, self._silent = {*self.peers}, 0

    @property
    def open(self) -> list[PeerId]:
        """Who has neither answered nor failed."""
        return sorted(self._open)

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
        self._unproven = Unproven(context.me)
        self._let_in: set[PeerId] = set()
        self._asked: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._queue: list[PeerId] = []
        self._absent: dict[PeerId, Absent] = {}
        self._first: set[PeerId] | None = None
        self._first_is_sampled = False
        self._is_news = False
        self._sample: Sample | None = None
        self._hidden: frozenset[PeerId] | None = None
        self._since: dict[PeerId, int] = {}

    def saw(self, view: NetworkView) -> NetworkView | None:
        """What of these records counts now; None while the first ones are being greeted."""
        self._view, self._is_news, self._hidden = view, False, None
        self._forget_the_gone(view)
        unproven, few = self._unproven, self._few
        if unproven.at_least <= few and len(unproven.all) <= few:
            self._let_in |= unproven.all
            self._queue.clear()
        else:
            known = sorted(peer for peer in self._let_in if peer in unproven) if len(view.records) <= CROWD else ()
            self._queue = [peer for peer in (*known, *self._to_greet()) if self._is_due(peer, view)]
            self._greet()
        self._first = self._first & view.records.keys() - self._let_in if self._first else set()
        return self.shown

    def news(self) -> NetworkView | None:
        """What counts, if that has changed since it was asked; else None."""
        is_news, self._is_news = self._is_news, False
        return self.shown if is_news else None

    @property
    def _few(self) -> int:
        return max(FEW, (len(self._unproven.members) - self._unproven.at_least) // OF_A_FEW)

    def heard(self, peer: PeerId) -> bool:
        """It has said something. True if it counts only since then: that is told when the round under way has ended, or at once
        when none is."""
        has_answered = peer in self._answered
        if not has_answered and (peer in self._unproven.proven or self._view is None or peer not in self._view.records):
            return False
        was_shown = peer in self._let_in
        self._answered.discard(peer)
        self._prove(peer)
        self._sampled(peer, is_there=True)
        if self._hidden is not None and peer in self._hidden:
            self._since.setdefault(peer, len(self._since))
        self._is_news = self._is_news or not (was_shown or self._asked)
        return not was_shown

    def _to_greet(self) -> Sequence[PeerId]:
        """Those to greet of peers that do not count yet."""
        is_first = self._first is None
        if len(self._unproven.members) <= CROWD:
            fresh = sorted(self._unproven.all - self._let_in)
            self._first = set(fresh) if is_first else self._first
            return fresh
        sample = self._sample
        if sample is None or (sample.vouched is not None and self._are_many_beyond(sample.crowd)):
            draw = Random(f"{self.ctx.me} {self.ctx.incarnation} {self.ctx.now}")
            size = SAMPLE_TO_PLAN if self.ctx.stage == DATA_STAGE else SAMPLE
            sample = self._sample = Sample(self._unproven.without(()), draw, size)
        self._first_is_sampled |= is_first
        return sorted(self._unproven.all - self._let_in) if sample.vouched is False else sample.peers

    def _are_many_beyond(self, crowd: Crowd) -> bool:
        return sum(peer not in crowd for peer in self._unproven.all) > self._few

    def _sampled(self, peer: PeerId, *, is_there: bool) -> None:
        """What comes of a greeting for the crowd that the peer was drawn from."""
        sample, view = self._sample, self._view
        if sample is None or view is None or not sample.is_decided_by(peer, is_there=is_there):
            return
        was_first, self._first_is_sampled = self._first_is_sampled, False
        if sample.vouched:
            self._unproven.vouch(sample.crowd)
            self._hidden = None
            self._first = {one for one in self._first or () if one not in sample.crowd}
            self._is_news = True
            return
        self._queue += [one for one in sample.crowd.in_order if one in view.records and self._is_due(one, view)]
        if was_first:
            unproven = self._unproven.all - self._let_in
            self._first = {one for one in unproven if one in sample.crowd and one not in sample.peers}

    @property
    def greets(self) -> bool:
        """More may count soon: somebody is being greeted, or is to be."""
        return bool(self._asked or self._queue)

    def is_proven(self, peer: PeerId) -> bool:
        """Its record is here, and it has said something or has answered."""
        return peer in self._unproven.proven and self._view is not None and peer in self._view.records

    def answered(self, peer: PeerId) -> None:
        """It is there. It counts when all of its round have answered or failed: so peers that greet the same crowd go through
        the same few views of it, and not each through its own."""
        if self._view is not None and peer in self._view.records:
            if peer in self._asked and peer in self._unproven and peer not in self._let_in:
                self._answered.add(peer)
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
        self._unproven.prove(peer)
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
                self._answered.clear()
                self._hidden, self._is_news = None, True
                self._greet()

    def _is_due(self, peer: PeerId, view: NetworkView) -> bool:
        absent, record = self._absent.get(peer), view.records.get(peer)
        if absent is None or record is None:
            return record is not None and peer not in self._asked
        is_news = record.sequence_number != absent.sequence_number
        return is_news and self.ctx.now >= absent.until and peer not in self._asked

    def _greet(self) -> None:
        """The next round, unless one is under way."""
        if self._asked:
            return
        records = self._view.records if self._view is not None else {}
        while self._queue and len(self._asked) < AT_ONCE:
            peer = self._queue.pop(0)
            if peer in records and peer not in self._unproven.proven:
                self._asked.add(peer)
                self.ctx.emit(Ask(peer, (), GREETING_S))

    @property
    def shown(self) -> NetworkView | None:
        """What counts now; None while the first records are being greeted."""
        view = self._view
        if view is None or self._first or self._first_is_sampled:
            return None
        few = self._unproven.few_others
        if few is not None:
            shown = sorted((few | self._let_in) - self._answered)
            return view.showing({one: view.records[one] for one in shown if one in view.records})
        hidden = self._hides
        return view.without(hidden) if hidden else view

    @property
    def _hides(self) -> set[PeerId]:
        return (self._unproven.all - self._let_in) | self._answered

    @property
    def shown_now(self) -> NetworkView | None:
        """The same, for the one message that has just proven its sender: a thousand may follow each other."""
        view = self._view
        if view is None or self._first or self._first_is_sampled or self._unproven.few_others is not None:
            return self.shown
        if self._hidden is None:
            self._hidden, self._since = frozenset(self._hides), {}
        hides = len(self._hidden) > len(self._since)
        return view.showing(Partly(view.records, self._hidden, self._since, len(self._since))) if hides else view

    def _forget_the_gone(self, view: NetworkView) -> None:
        """And find who is not proven: of thousands of records, only when somebody has come or gone."""
        if not self._unproven.saw(view.members):
            return
        self._let_in &= view.members
        self._answered &= view.members
        for peer in self._sample.open if self._sample is not None else ():
            if peer not in view.members and peer not in self._asked:
                self._sampled(peer, is_there=False)  # nobody asks it any more
        if len(self._absent) > MOST_REMEMBERED:
            self._absent = {peer: absent for peer, absent in self._absent.items() if peer in view.records}
