"""One computation at a time: what this peer's device does next, and what becomes of what it has done.

Corrections of the gradient go first, as a whole group waits for them; the rest is for the kind of peer to choose; others' work
is done again when there is nothing else. A result that nobody wants any more is thrown away.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.audit.auditor import Auditor
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import COMPUTING, Held
from gwtf_p2p.protocol.ids import MicrobatchId
from gwtf_p2p.protocol.peer.accounts import Accounts

CORRECTIONS = frozenset({ev.Work.UNCOUNT, ev.Work.RECOUNT})
COUNTING = frozenset({ev.Work.BACKWARD, ev.Work.LOSS, ev.Work.FINISH}) | CORRECTIONS
"""Work that changes the gradient."""


class Worker(Protocol):
    """The machine of either kind: what it computes, in which order, and what follows."""

    @abstractmethod
    def next_work(self) -> tuple[ev.Work, Held] | None:
        """What to compute now, moved to the phase in which it is."""

    @abstractmethod
    def computed(self, held: Held, event: ev.Computed) -> None:
        """It is done."""


class Computing:
    """Of one peer. `running` is what its device computes."""

    def __init__(self, context: Context, participant: Participant, worker: Worker, auditor: Auditor) -> None:
        self.ctx, self.participant, self.worker, self.auditor = context, participant, worker, auditor
        self.accounts = Accounts(context)
        self.running: tuple[ev.Work, MicrobatchId] | None = None
        self._is_void = False

    @property
    def changes_gradient(self) -> bool:
        """What is being computed will change that of the iteration that is being closed."""
        running = self.running
        return running is not None and running[0] in COUNTING and running[1].iteration <= self.participant.version

    def go_on(self) -> None:
        """Compute what comes next, if the device is idle."""
        if self.running is not None:
            return
        correction = self.participant.share.next_correction()
        if correction is not None:
            self._start(*correction)
            return
        work = self.worker.next_work()
        if work is not None:
            self._start(work[0], work[1].id, work[1].keeps)
            return
        audit = self.auditor.next_work()
        if audit is not None:
            self._start(ev.Work.AUDIT, audit)

    def _start(self, work: ev.Work, microbatch: MicrobatchId, keeps: bool = True) -> None:
        self.running = (work, microbatch)
        self.ctx.emit(ef.Compute(work, microbatch, keeps))

    def let_go(self) -> None:
        """What the device computes now belongs to gradients that are thrown away."""
        self._is_void = self.running is not None

    def done(self, event: ev.Computed) -> None:
        """The device has computed it."""
        ctx = self.ctx
        self.running = None
        was_void, self._is_void = self._is_void, False
        self.accounts.computed(event)
        if event.work is ev.Work.AUDIT:
            self.auditor.computed(event, was_void or event.microbatch.iteration != self.participant.version)
            return
        if not event.finite and not was_void:
            ctx.report("not_finite", microbatch=str(event.microbatch), work=event.work.value)
            self.participant.share.spoil(event.microbatch)
        if event.work in CORRECTIONS:
            if not was_void and event.microbatch.iteration == self.participant.version and not self.participant.progress.behind:
                self.participant.share.corrected(event.work, event.microbatch)
            return
        held = ctx.held.get(event.microbatch)
        if held is None:
            ctx.emit(ef.Discard(event.microbatch))
            return
        if held.phase not in COMPUTING:
            return  # it was dropped and has come again meanwhile
        held.computed(event.seconds, event.loss)
        if held.unwanted and event.work is ev.Work.FORWARD:
            ctx.discard(held)
            return
        self.worker.computed(held, event)
