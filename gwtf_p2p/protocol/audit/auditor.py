"""Doing again what another peer of the stage has done: at most a few hops at once, when the device has nothing else to do.

The weights must be those that the worker had: an order for another iteration, or one that is still here when this peer steps,
comes to nothing. So does one whose tensors do not come. What the neighbours of the worker have must be what the worker says,
else the order ends with the neighbour's name: who of the two lies cannot be told here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gwtf_p2p.protocol.audit.judge import agrees, difference
from gwtf_p2p.protocol.audit.texts import finding_text
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import DropGathered, Gather, Send, Sign
from gwtf_p2p.protocol.events import Computed, Gathered
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.audit_messages import AuditOrder, AuditResult, Digests, Finding, Hop

MOST_ORDERS = 4
"""At once: each holds four tensors of a microbatch."""


@dataclass(slots=True)
class Job:
    """An order under way. `finding` waits to be signed."""

    order: AuditOrder
    finding: Finding | None = None
    is_here: bool = False

    @property
    def hop(self) -> Hop:
        return self.order.hop


class Auditor:
    """Of one stage peer."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self._jobs: dict[MicrobatchId, Job] = {}

    def ordered(self, order: AuditOrder) -> None:
        """Take an order, or say why not. That it is drawn, and who may order, has been asked before (`trust`)."""
        hop, reason = order.hop, self._why_not(order)
        job = self._jobs.get(hop.microbatch)
        if job is not None and job.order == order:
            return  # it has been sent twice
        if reason or job is not None:
            self._answer(hop, reason or "another order for this microbatch is under way")
            return
        self._jobs[hop.microbatch] = Job(order)
        self.ctx.emit(Gather(hop, order.proof))

    def _why_not(self, order: AuditOrder) -> str:
        ctx, hop, participant = self.ctx, order.hop, self.participant
        if ctx.stage != hop.stage or ctx.me == hop.worker:
            return f"this peer holds stage {ctx.stage}"
        at = (hop.epoch, hop.microbatch.iteration)
        if participant.out_of_step or participant.share.stepping or at != participant.position:
            return "its weights are of another iteration"
        return "busy" if len(self._jobs) >= MOST_ORDERS else ""

    def gathered(self, event: Gathered) -> None:
        """The tensors are here, or will not come."""
        job = self._jobs.get(event.hop.microbatch)
        if job is None:
            self.ctx.emit(DropGathered(event.hop.microbatch))  # it has ended meanwhile
            return
        if job.hop != event.hop:
            return
        if event.digests is None:
            self._end(job, event.reason)
            return
        disputed = _disputed(job.hop, job.order.testimony.digests, event.digests)
        if disputed is not None:
            self._end(job, f"{disputed} has something else than the worker says", disputed)
            return
        job.is_here = True

    def next_work(self) -> MicrobatchId | None:
        """What to compute, the oldest order first: when nothing is on its way here, or the group averages. A device that has
        begun with this would make a microbatch wait for it."""
        participant = self.participant
        if participant.share.stepping or participant.out_of_step or (self.ctx.occupancy and participant.preparing is None):
            return None
        return next((m for m, job in self._jobs.items() if job.is_here and job.finding is None), None)

    def computed(self, event: Computed, is_void: bool) -> None:
        """`is_void`: the weights were replaced meanwhile."""
        job = self._jobs.get(event.microbatch)
        if job is None or not job.is_here:
            return
        if is_void:
            self._end(job, "its weights are of another iteration")
            return
        if event.differs is None:
            self._end(job, "what was gathered is gone")
            return
        ctx, (output, gradient) = self.ctx, map(difference, event.differs)
        view = ctx.view
        record = view.records.get(job.hop.worker) if view is not None else None
        precisions = (record.precision if record is not None else "", ctx.audit.precision)
        good = agrees(output, gradient, precisions, ctx.audit.tolerance)
        job.finding = Finding(job.order.testimony, ctx.me, good, output, gradient, "")
        ctx.emit(DropGathered(event.microbatch), Sign(_name(event.microbatch), finding_text(job.finding)))

    def signed(self, name: str, signature: str) -> None:
        """Tell the data peer."""
        for microbatch, job in list(self._jobs.items()):
            if job.finding is not None and _name(microbatch) == name:
                del self._jobs[microbatch]
                finding = replace(job.finding, signature=signature)
                self.ctx.emit(Send(microbatch.data_peer, AuditResult(job.hop, finding)))

    def forget(self) -> None:
        """The iteration is over, or this peer has no part in it any more."""
        for job in list(self._jobs.values()):
            self._end(job, "its weights are of another iteration")

    def _end(self, job: Job, reason: str, disputed: PeerId | None = None) -> None:
        del self._jobs[job.hop.microbatch]
        self.ctx.emit(DropGathered(job.hop.microbatch))
        self._answer(job.hop, reason, disputed)

    def _answer(self, hop: Hop, reason: str, disputed: PeerId | None = None) -> None:
        self.ctx.emit(Send(hop.microbatch.data_peer, AuditResult(hop, None, reason, disputed)))


def _name(microbatch: MicrobatchId) -> str:
    return f"finding {microbatch}"


def _disputed(hop: Hop, worker: Digests, neighbours: Digests) -> PeerId | None:
    """The neighbour that has something else."""
    if (worker.input, worker.input_gradient) != (neighbours.input, neighbours.input_gradient):
        return hop.before
    if (worker.output, worker.output_gradient) != (neighbours.output, neighbours.output_gradient):
        return hop.after
    return None
